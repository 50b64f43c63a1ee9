"""Make a seeded, COCO-format detection set of drawn shapes: nothing to download, quick to learn.

    python tools/make_shapes_dataset.py --output datasets/shapes

writes ``annotations/instances_{train,val}.json`` and the images ``{train,val}/000000.jpg`` and so
on. Image i depends on (seed, split, i, size) alone, so a larger set extends a smaller one.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import cv2
from _shared.shapes import CLASSES, SPLITS, draw_image
from tqdm import tqdm

from onenet.cli import run_program
from onenet.errors import DatasetError

RECORD = "dataset.json"  # says that this program made the folder, and with which arguments
GENERATOR = "make_shapes_dataset/1"  # a new number whenever the same arguments draw other pixels

CC0 = "https://creativecommons.org/publicdomain/zero/1.0/"
LICENSE = {"id": 1, "name": "CC0 1.0", "url": CC0}
JPEG_OPTIONS = [cv2.IMWRITE_JPEG_QUALITY, 95]
JPEG_OPTIONS += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]


def write_split(output: Path, split: str, arguments: dict[str, int]) -> int:
    """Write one split's images and annotations; returns its number of objects."""
    size, seed = arguments["size"], arguments["seed"]
    images, annotations = [], []
    (output / split).mkdir(parents=True, exist_ok=True)
    for index in tqdm(range(arguments[split]), desc=f"drawing {split}", unit="image", disable=None):
        image, shapes = draw_image(seed, split, index, size)
        name = f"{index:06d}.jpg"
        encoded = cv2.imencode(".jpg", image[..., ::-1], JPEG_OPTIONS)[1]
        (output / split / name).write_bytes(encoded.tobytes())
        images.append({"id": index, "file_name": name, "width": size, "height": size, "license": 1})
        for shape in shapes:
            annotations.append(
                {
                    "id": len(annotations) + 1,  # pycocotools takes 0 for "not matched"
                    "image_id": index,
                    "category_id": shape.label + 1,
                    "bbox": [float(v) for v in shape.box],
                    "area": float(shape.area),
                    "iscrowd": 0,
                }
            )
    content = {
        "info": {
            "description": f"Drawn shapes, {split} split",
            "version": GENERATOR,
            "arguments": arguments,
        },
        "licenses": [LICENSE],
        "categories": [
            {"id": k, "name": name, "supercategory": "shape"}
            for k, name in enumerate(CLASSES, start=1)
        ],
        "images": images,
        "annotations": annotations,
    }
    (output / "annotations").mkdir(exist_ok=True)
    (output / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return len(annotations)


def read_record(output: Path) -> dict | None:
    """What this program noted about the folder, or None if it did not make it."""
    try:
        record = json.loads((output / RECORD).read_text())
    except (OSError, ValueError):
        return None
    ours = isinstance(record, dict) and str(record.get("generator", "")).startswith(
        GENERATOR.split("/")[0]
    )
    return record if ours else None


def make_dataset(
    output: Path, *, train: int, val: int, size: int, seed: int, overwrite: bool = False
) -> bool:
    """Make the set in ``output``, unless it is already there.

    A set of this program's with other arguments is replaced.

    Returns:
        Whether anything was drawn.

    Raises:
        FileExistsError: ``output`` holds files of another origin and ``overwrite`` is false.
    """
    arguments = {"train": train, "val": val, "size": size, "seed": seed}
    record = {"generator": GENERATOR, "arguments": arguments, "complete": True}
    old = read_record(output)
    if old == record and not overwrite:
        return False
    if output.exists() and old is None and not overwrite:
        if not output.is_dir() or any(output.iterdir()):
            raise FileExistsError(
                f"{output} exists and was not made by this program: give another --output, or "
                "--overwrite to write into it"
            )
    output.mkdir(parents=True, exist_ok=True)
    # If this run is interrupted, the record says so, and the next run draws again.
    (output / RECORD).write_text(json.dumps({**record, "complete": False}) + "\n")
    for split in SPLITS:
        (output / "annotations" / f"instances_{split}.json").unlink(missing_ok=True)
        for index in range(arguments[split], (old or record)["arguments"][split]):
            (output / split / f"{index:06d}.jpg").unlink(missing_ok=True)
    for split in SPLITS:
        write_split(output, split, arguments)
    (output / RECORD).write_text(json.dumps(record) + "\n")
    return True


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Make a seeded COCO-format detection set of drawn shapes.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output", type=Path, default=Path("datasets/shapes"), metavar="DIR")
    parser.add_argument("--train", type=int, default=2000, metavar="N", help="training images")
    parser.add_argument("--val", type=int, default=200, metavar="N", help="validation images")
    parser.add_argument("--size", type=int, default=128, metavar="PX", help="side of an image")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="draw again, and write into a folder that this program did not make",
    )
    return parser


def run(args: argparse.Namespace) -> None:
    numbers = {name: getattr(args, name) for name in ("train", "val", "size", "seed")}
    for name, least in (("train", 1), ("val", 1), ("size", 64), ("seed", 0)):
        if numbers[name] < least:
            raise DatasetError(f"--{name} must be {least} or more, got {numbers[name]}")
    drawn = make_dataset(args.output, **numbers, overwrite=args.overwrite)
    what = f"{args.train} training and {args.val} validation images of {args.size} px"
    print(f"{args.output}: {what}" + ("" if drawn else ", already there"))


def main(argv: list[str] | None = None) -> None:
    run_program(build_parser(), run, argv)


if __name__ == "__main__":
    main()
