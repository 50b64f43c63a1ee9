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
import sys
from pathlib import Path

from _shared.crowdhuman_odgt import read_odgt
from _shared.voc import read_voc
from _shared.yolo import read_yolo

from onenet.cli import run_program
from onenet.errors import DatasetError
from onenet.files import check_outputs


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
    for part, what in ((voc, "XML files"), (yolo, "text files")):
        part.add_argument(
            "--annotations",
            type=Path,
            required=True,
            metavar="DIR",
            help=f"folder of {what}, with the same sub-folders as --images",
        )
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
    voc.add_argument(
        "--zero-based",
        action="store_true",
        help="pixels are counted from 0, and xmax and ymax are the box's right and bottom edge",
    )
    yolo.add_argument(
        "--classes",
        type=Path,
        required=True,
        metavar="FILE",
        help="data.yaml, or class names in order, one per line",
    )
    return parser


def check_output(args: argparse.Namespace) -> None:
    """Raise an error if the output is an input, or training could not read it."""
    check_outputs([args.output], files_read(args))
    if args.output.suffix.lower() != ".json":
        raise DatasetError(
            f"--output {args.output} must end in .json: training reads it as OUTPUT.json:IMAGES"
        )


def files_read(args: argparse.Namespace) -> list[Path]:
    """Everything that a conversion reads; a JSON in these folders is an earlier output."""
    folders = [folder for folder in (args.annotations, args.images) if folder.is_dir()]
    found = [p for folder in folders for p in folder.rglob("*") if p.suffix.lower() != ".json"]
    more = [getattr(args, name, None) for name in ("classes", "list")]
    return [args.annotations, *found, *filter(None, more)]


def run(args: argparse.Namespace) -> None:
    check_output(args)
    if args.format == "voc":
        result = read_voc(
            args.annotations, args.images, args.classes, args.list, zero_based=args.zero_based
        )
    elif args.format == "yolo":
        result = read_yolo(args.annotations, args.images, args.classes)
    else:
        result = read_odgt(args.annotations, args.images)
    result.write(args.output)
    print(f"{args.output}: {result.summary}")
    for note in result.notes:
        print(f"note: {note}", file=sys.stderr)


def main(argv: list[str] | None = None) -> None:
    run_program(build_parser(), run, argv)


if __name__ == "__main__":
    main()
