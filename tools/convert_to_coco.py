"""Convert annotations in other formats to a COCO JSON, which training and evaluation read.

    python tools/convert_to_coco.py voc --annotations VOC2007/Annotations \
        --images VOC2007/JPEGImages --list VOC2007/ImageSets/Main/trainval.txt --output voc.json
    python tools/convert_to_coco.py yolo --annotations labels/train --images images/train \
        --classes data.yaml --output train.json
    python tools/convert_to_coco.py crowdhuman --annotations annotation_val.odgt \
        --images CrowdHuman_val --output datasets/crowdhuman/annotations/val.json

Images stay where they are: use the result as ``train.json:images/train``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import supervision as sv
import yaml
from _shared.crowdhuman_odgt import read_odgt

from onenet.cli import run_program
from onenet.data.coco_json import read_coco_json
from onenet.data.sources import shortened
from onenet.errors import DatasetError
from onenet.files import check_outputs

LABELIMG_CLASSES = "classes.txt"  # labelImg writes it into the folder of the labels


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Convert annotations in other formats to a COCO JSON.",
        epilog="Images stay where they are; training reads the result as OUTPUT.json:IMAGES.",
    )
    formats = parser.add_subparsers(dest="format", required=True, metavar="FORMAT")
    voc = formats.add_parser(
        "voc",
        help="Pascal VOC: one XML file per image",
        description="Pascal VOC: one XML file per image, with pixels counted from 1. Objects "
        "marked as difficult count like the others.",
    )
    yolo = formats.add_parser(
        "yolo",
        help="YOLO: one text file per image",
        description="YOLO: one text file per image. An image without a file has no objects. "
        "Polygons become the boxes around them.",
    )
    crowdhuman = formats.add_parser(
        "crowdhuman",
        help="CrowdHuman: an .odgt file",
        description="CrowdHuman: the full boxes of an .odgt file, not clipped to the image. Boxes "
        "marked as ignored become crowd regions.",
    )
    for part, what in ((voc, "folder of XML files"), (yolo, "folder of text files")):
        part.add_argument("--annotations", type=Path, required=True, metavar="DIR", help=what)
    crowdhuman.add_argument(
        "--annotations", type=Path, required=True, metavar="FILE", help="annotation_val.odgt"
    )
    for part in (voc, yolo, crowdhuman):
        part.add_argument(
            "--images", type=Path, required=True, metavar="DIR", help="folder with the images"
        )
        part.add_argument(
            "--output", type=Path, required=True, metavar="FILE", help="COCO JSON to write"
        )
    voc.add_argument(
        "--list",
        type=Path,
        metavar="FILE",
        help="use only these images: names without suffix, one per line (ImageSets/Main/train.txt)",
    )
    voc.add_argument(
        "--classes",
        type=Path,
        metavar="FILE",
        help="class names in order, one per line; use the same file for every part of a data set "
        "(default: the classes found, sorted)",
    )
    yolo.add_argument(
        "--classes",
        type=Path,
        required=True,
        metavar="FILE",
        help="data.yaml, or class names in order, one per line",
    )
    return parser


def read_voc(
    annotations: Path, images: Path, classes: Path | None = None, names: Path | None = None
) -> dict[str, Any]:
    """Read a folder of Pascal VOC files as the content of a COCO file.

    Args:
        annotations: folder of XML files.
        images: folder of the images.
        classes: file with class names in order, one per line; None: the classes found, sorted.
        names: file with image names without suffix, one per line; None: all images.

    Raises:
        DatasetError: a file is missing, malformed or without a counterpart; the message names it.
    """
    files = find_annotations(annotations, images, ".xml")
    for file in files:
        check_voc(file)
    dataset = load(sv.DetectionDataset.from_pascal_voc, images, annotations)
    paths = {Path(path).stem: path for path in sorted(dataset.image_paths)}
    check_partners(files, dataset.image_paths, every_image=True)
    if names is not None:
        wanted = read_lines(names)
        if missing := [name for name in wanted if name not in paths]:
            raise DatasetError(f"{names} names images that are not in {images}: {some(missing)}")
        paths = {name: paths[name] for name in wanted}
    order = read_lines(classes) if classes else sorted(dataset.classes)
    if unknown := set(dataset.classes) - set(order):
        raise DatasetError(f"{annotations} has classes that {classes} lacks: {some(unknown)}")
    if not order:
        raise DatasetError(f"{annotations}: no file has an object; give the classes by --classes")
    return to_coco(dataset, list(paths.values()), order)


def read_yolo(annotations: Path, images: Path, classes: Path) -> dict[str, Any]:
    """Read a folder of YOLO labels as the content of a COCO file.

    Args:
        annotations: folder of text files.
        images: folder of the images.
        classes: ``data.yaml``, or a file with class names in order, one per line.

    Raises:
        DatasetError: a file is missing, malformed or without an image; the message names it.
    """
    files = find_annotations(annotations, images, ".txt")
    files = [file for file in files if file.name != LABELIMG_CLASSES]
    if classes.suffix in (".yaml", ".yml"):
        dataset = load(sv.DetectionDataset.from_yolo, images, annotations, classes)
    else:
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder) / "data.yaml"
            data.write_text(yaml.safe_dump({"names": read_lines(classes)}), encoding="utf-8")
            dataset = load(sv.DetectionDataset.from_yolo, images, annotations, data)
    check_partners(files, dataset.image_paths, every_image=False)
    return to_coco(dataset, sorted(dataset.image_paths), dataset.classes)


def find_annotations(annotations: Path, images: Path, suffix: str) -> list[Path]:
    """The annotation files of a folder, sorted; raises ``DatasetError`` if there are none."""
    for folder in (annotations, images):
        if not folder.is_dir():
            raise DatasetError(f"{folder} is not a folder")
    files = sorted(annotations.glob(f"*{suffix}"))
    if not files:
        raise DatasetError(f"{annotations}: this folder has no {suffix} file")
    return files


def check_voc(file: Path) -> None:
    """Raise ``DatasetError`` for a malformed file, which supervision's errors would not name."""
    try:
        root = ElementTree.parse(file).getroot()
    except (ElementTree.ParseError, OSError) as error:
        raise DatasetError(f"{file} is not valid XML: {error}") from error
    if root.tag != "annotation":
        raise DatasetError(f"{file}: expected <annotation>, got <{root.tag}>")
    for number, item in enumerate(root.findall("object"), start=1):
        if not item.findtext("name"):
            raise DatasetError(f"{file}: object {number} has no <name>")
        for side in ("xmin", "ymin", "xmax", "ymax"):
            text = item.findtext(f"bndbox/{side}")
            if not _is_number(text):
                raise DatasetError(
                    f"{file}: <bndbox><{side}> of object {number} must be pixels, got {text!r}"
                )


def _is_number(text: str | None) -> bool:
    try:
        return math.isfinite(float(text or ""))
    except ValueError:
        return False


def load(reader: Any, *places: Path) -> sv.DetectionDataset:
    """Call supervision's reader; its errors, which name the file, become ``DatasetError``."""
    try:
        return reader(*map(str, places), show_progress=sys.stderr.isatty())
    except (ValueError, OSError, yaml.YAMLError) as error:
        raise DatasetError(" ".join(str(error).split())) from error


def check_partners(files: list[Path], images: Sequence[str], *, every_image: bool) -> None:
    """Check that every annotation file has an image and, if ``every_image``, the reverse."""
    stems = sorted(Path(image).stem for image in images)
    if doubled := {a for a, b in zip(stems, stems[1:], strict=False) if a == b}:
        raise DatasetError(f"several images share one annotation file: {some(doubled)}")
    if alone := [file for file in files if file.stem not in stems]:
        raise DatasetError(f"no image for {some(alone)}; is --images the right folder?")
    if every_image and (alone := set(stems) - {file.stem for file in files}):
        raise DatasetError(f"no annotation file for the images {some(alone)}")


def some(names: Any) -> str:
    return shortened(sorted(map(str, names)))


def read_lines(file: Path) -> list[str]:
    """The lines of a text file that are not blank; raises ``DatasetError`` for repeated ones."""
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{file} cannot be read: {error}") from error
    lines = [line for line in lines if line]
    if len(set(lines)) != len(lines):
        raise DatasetError(f"{file}: a name is in it twice")
    return lines


def to_coco(dataset: sv.DetectionDataset, paths: list[str], classes: list[str]) -> dict[str, Any]:
    """The content of a COCO file with the boxes of the images ``paths`` of a data set."""
    label = np.array([classes.index(name) for name in dataset.classes], dtype=np.int64)
    boxes = {}
    for path in paths:
        found = dataset.annotations[path]
        # Without masks, since supervision would write masks of several parts as crowds.
        boxes[path] = sv.Detections(xyxy=found.xyxy, class_id=label[found.class_id])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "coco.json"
        sv.DetectionDataset(classes, paths, boxes).as_coco(annotations_path=str(file))
        content = json.loads(file.read_text(encoding="utf-8"))
    # supervision adds a licence to every data set, which it cannot know.
    keep = {
        "images": ("id", "file_name", "width", "height"),
        "annotations": ("id", "image_id", "category_id", "bbox", "area", "iscrowd"),
        "categories": ("id", "name"),
    }
    return {
        part: [{key: entry[key] for key in keys} for entry in content[part]]
        for part, keys in keep.items()
    }


def write(content: dict[str, Any], output: Path) -> None:
    """Write a COCO file, unless training would not read it."""
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_suffix(".partial")
    partial.write_text(json.dumps(content), encoding="utf-8")
    read_coco_json(partial)
    os.replace(partial, output)


def files_read(args: argparse.Namespace) -> list[Path]:
    """Everything that a conversion reads; a JSON in these folders is an earlier output."""
    folders = [folder for folder in (args.annotations, args.images) if folder.is_dir()]
    found = [p for folder in folders for p in folder.rglob("*") if p.suffix.lower() != ".json"]
    more = [getattr(args, name, None) for name in ("classes", "list")]
    return [args.annotations, *found, *filter(None, more)]


def run(args: argparse.Namespace) -> None:
    check_outputs([args.output], files_read(args))
    if args.format == "voc":
        content = read_voc(args.annotations, args.images, args.classes, args.list)
    elif args.format == "yolo":
        content = read_yolo(args.annotations, args.images, args.classes)
    else:
        content = read_odgt(args.annotations, args.images)
    write(content, args.output)
    with_objects = {a["image_id"] for a in content["annotations"] if not a["iscrowd"]}
    crowds = sum(a["iscrowd"] for a in content["annotations"])
    names = [category["name"] for category in content["categories"]]
    print(
        f"{args.output}: {len(content['images'])} images, "
        f"{len(content['images']) - len(with_objects)} of them without objects; "
        f"{len(content['annotations']) - crowds} boxes, {crowds} crowd regions; "
        f"{'1 class' if len(names) == 1 else f'{len(names)} classes'}: {shortened(names)}"
    )


def main(argv: list[str] | None = None) -> None:
    run_program(build_parser(), run, argv)


if __name__ == "__main__":
    main()
