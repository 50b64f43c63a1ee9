"""Draw a detection data set of shapes in COCO's format: nothing to download, quick to learn.

    python tools/make_shapes_dataset.py --output datasets/shapes

writes ``annotations/instances_{train,val}.json`` and the images ``{train,val}/000000.jpg`` and so
on. Image i depends only on (seed, split, i, size), so a larger data set extends a smaller one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from _shared.shapes_dataset import make_dataset

from onenet.cli import run_program
from onenet.errors import DatasetError

LARGEST = 4096  # px; to draw larger images takes gigabytes


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Draw a detection data set of shapes in COCO's format.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--output", type=Path, default=Path("datasets/shapes"), metavar="DIR", help="folder"
    )
    parser.add_argument("--train", type=int, default=2000, metavar="N", help="training images")
    parser.add_argument("--val", type=int, default=200, metavar="N", help="validation images")
    parser.add_argument("--size", type=int, default=128, metavar="PX", help="side of the images")
    parser.add_argument("--seed", type=int, default=0, help="seed of the drawings")
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
    if args.size > LARGEST:
        raise DatasetError(f"--size must be {LARGEST} or less, got {args.size}")
    drawn = make_dataset(args.output, **numbers, overwrite=args.overwrite)
    what = f"{args.train} training and {args.val} validation images of {args.size} px"
    print(f"{args.output}: {what}" + ("" if drawn else ", already there"))


def main(argv: list[str] | None = None) -> None:
    run_program(build_parser(), run, argv)


if __name__ == "__main__":
    main()
