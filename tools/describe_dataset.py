"""Describe a COCO-format data set: classes, objects per image, sizes and shapes of boxes.

    python tools/describe_dataset.py my/train.json:my/images \
        --config-file projects/OneNet/configs/onenet.res50.nodcn.yaml --output output/description

prints tables and writes ``description.json`` and ``description.png`` into ``--output``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _shared.dataset_plots import draw
from tabulate import tabulate

from onenet.cli import add_opts_flag, files_of_model, run_program
from onenet.data.annotations import Annotations, read_annotations
from onenet.data.coco_json import read_coco_json
from onenet.data.image_files import find_files
from onenet.data.sources import find_dataset, shortened
from onenet.errors import ConfigError, DatasetError
from onenet.files import check_outputs, strict_json
from onenet.lightning.config import load_cfg

QUANTILES = {"min": 0, "5 %": 5, "25 %": 25, "median": 50, "75 %": 75, "95 %": 95, "max": 100}
DESCRIPTION, PICTURE = "description.json", "description.png"
SMALL, LARGE = 32**2, 96**2  # px², the bounds of COCO's APs, APm and APl


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Describe a COCO-format data set: classes, objects per image, sizes and shapes "
        "of boxes. Crowd regions and boxes without a positive size or outside their image are "
        "counted, but otherwise left out, as in training."
    )
    parser.add_argument(
        "dataset", metavar="NAME", help="as in DATASETS.TRAIN: a name or ANNOTATIONS.json:FOLDER"
    )
    parser.add_argument(
        "--config-file",
        metavar="FILE",
        help="YAML config, to also give sizes after its resize for testing (INPUT.MIN_SIZE_TEST "
        "and MAX_SIZE_TEST)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="folder for description.json and description.png (default: only print tables)",
    )
    add_opts_flag(parser, "config overrides, such as INPUT.MIN_SIZE_TEST 512")
    return parser


def describe(data: Annotations, resize: tuple[int, int] | None = None) -> dict[str, Any]:
    """Describe a data set with at least one image, ready for JSON.

    Args:
        data: the annotations.
        resize: px of the shortest edge and limit of the longest, to also give sizes after a resize.
    """
    objects = data.at(data.objects)
    per_image = np.bincount(objects.images, minlength=len(data.sizes))
    ends = objects.boxes[:, :2] + objects.boxes[:, 2:]
    beyond = (objects.boxes[:, :2] < 0) | (ends > objects.sizes[objects.images])
    versions = {"as annotated": objects}
    if resize is not None:
        versions["after the resize"] = objects.resized(*resize)
    return {
        "images": len(data.sizes),
        "images without objects": int((per_image == 0).sum()),
        "objects": len(objects.labels),
        "objects extending beyond the image": int(beyond.any(axis=1).sum()),
        "crowd regions": int((data.crowd & data.usable).sum()),
        "boxes without a positive size": int((~data.with_size).sum()),
        "boxes outside their image": int((data.with_size & ~data.usable).sum()),
        "classes": _classes(data, objects),
        "quantiles": {
            "objects per image": quantiles(per_image),
            "image width, px": quantiles(data.sizes[:, 0]),
            "image height, px": quantiles(data.sizes[:, 1]),
            **{f"√(w·h) of objects {name}, px": quantiles(v.sides) for name, v in versions.items()},
            "w / h of objects": quantiles(objects.boxes[:, 2] / objects.boxes[:, 3]),
        },
        "sizes": {name: _sizes(version) for name, version in versions.items()},
    }


def _classes(data: Annotations, objects: Annotations) -> list[dict[str, Any]]:
    count = len(data.class_names)
    total = np.bincount(objects.labels, minlength=count)
    crowds = np.bincount(data.labels[data.crowd & data.usable], minlength=count)
    pairs = np.unique(np.stack((objects.labels, objects.images)), axis=1)
    images = np.bincount(pairs[0], minlength=count)
    return [
        {
            "class": name,
            "objects": int(total[k]),
            "share": float(total[k] / max(1, len(objects.labels))),
            "images": int(images[k]),
            "crowd regions": int(crowds[k]),
            "median √(w·h), px": quantiles(objects.sides[objects.labels == k])["median"],
        }
        for k, name in enumerate(data.class_names)
    ]


def quantiles(values: np.ndarray) -> dict[str, float | None]:
    """Quantiles by name; None if there are no values."""
    if len(values) == 0:
        return dict.fromkeys(QUANTILES)
    found = np.percentile(values, list(QUANTILES.values()))
    return dict(zip(QUANTILES, found.tolist(), strict=True))


def _sizes(objects: Annotations) -> dict[str, float]:
    """The fraction of objects in each of COCO's size ranges, by area of the box."""
    area, total = objects.sides**2, max(1, len(objects.labels))
    small, large = (area < SMALL).sum(), (area > LARGE).sum()
    parts = {"small": small, "medium": len(area) - small - large, "large": large}
    return {name: float(part / total) for name, part in parts.items()}


def tables(description: dict[str, Any]) -> str:
    """A description as text, classes ordered by their number of objects."""
    totals = [(name, value) for name, value in description.items() if isinstance(value, int)]
    classes = sorted(description["classes"], key=lambda entry: -entry["objects"])
    of_classes = [{**entry, "share": f"{entry['share']:.1%}"} for entry in classes]
    spread = [(name, *row.values()) for name, row in description["quantiles"].items()]
    sizes = [
        (name, *(f"{share:.1%}" for share in row.values()))
        for name, row in description["sizes"].items()
    ]
    return "\n\n".join(
        (
            _table(totals, ("data set", "")),
            _table([list(entry.values()) for entry in of_classes], list(of_classes[0])),
            _table(spread, ("quantiles", *QUANTILES)),
            _table(sizes, ("COCO's sizes, by area of the box", "small", "medium", "large")),
        )
    )


def _table(rows: Sequence[Sequence[Any]], headers: Sequence[str]) -> str:
    cells = [[_text(cell) for cell in row] for row in rows]
    align = ("left", *["right"] * (len(headers) - 1))
    # Keeps text as it is: a class may be named "007".
    return tabulate(cells, headers, tablefmt="pipe", colalign=align, disable_numparse=True)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if value < 1000 else f"{value:.0f}"
    return "–" if value is None else str(value)


def run(args: argparse.Namespace) -> None:
    source = find_dataset(args.dataset)
    resize = None
    if args.config_file:
        size = load_cfg(args.config_file, args.opts).INPUT
        resize = (size.MIN_SIZE_TEST, size.MAX_SIZE_TEST)
    elif args.opts:
        raise ConfigError("--opts changes the config of --config-file, which is missing")
    content = read_coco_json(source.json_file)
    if not content["images"]:
        raise DatasetError(f"{source.json_file}: this file has no images")
    files = [image["file_name"] for image in content["images"]]
    if args.output:
        images = [source.image_root / name for name in files]
        inputs = [source.json_file, *images, *files_of_model(args)]
        check_outputs([args.output / name for name in (DESCRIPTION, PICTURE)], inputs)
    data = read_annotations(content)
    description = {"name": source.json_file.name, **describe(data, resize)}
    print(tables(description))
    found = find_files(source, (image["file_name"] for image in content["images"]))
    if gone := found.missing + found.outside:
        print(f"\n{len(gone)} images are not in {source.image_root}: {shortened(gone)}")
    if args.output:
        save(args.output, description, data, resize)


def save(
    folder: Path, description: dict[str, Any], data: Annotations, resize: tuple[int, int] | None
) -> None:
    """Write ``description.json`` and, if there are objects, ``description.png``."""
    folder.mkdir(parents=True, exist_ok=True)
    file, picture = folder / DESCRIPTION, folder / PICTURE
    file.write_text(strict_json(description, indent=2, ensure_ascii=False), encoding="utf-8")
    objects = data.at(data.objects)
    if len(objects.labels) == 0:
        print(f"\n{file}; no picture, since there are no objects")
        return
    resized = objects.resized(*resize) if resize else None
    draw(description["name"], objects, resized).savefig(picture)
    print(f"\n{file}, {picture}")


def main(argv: list[str] | None = None) -> None:
    run_program(build_parser(), run, argv)


if __name__ == "__main__":
    main()
