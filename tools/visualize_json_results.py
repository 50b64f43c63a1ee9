"""Draw the detections of a COCO results file beside the ground truth.

    python tools/visualize_json_results.py \
        --input output/shapes/inference/coco_instances_results.json \
        --dataset datasets/shapes/annotations/instances_val.json:datasets/shapes/val \
        --output output/shapes/validation.jpg

``--output`` is a picture, for a contact sheet of some images, or a folder, for one picture per
image.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _shared.examples import PICTURES, save
from tqdm import tqdm

from onenet.cli import positive, run_program
from onenet.data.dataset import CocoDetection, spread_evenly
from onenet.data.sources import find_dataset
from onenet.errors import DatasetError
from onenet.structures import Detections
from onenet.visualization.boxes import contact_sheet, draw_comparison


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Draw the detections of a COCO results file beside the ground truth.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--input", required=True, metavar="FILE", help="coco_instances_results.json of a run"
    )
    parser.add_argument(
        "--dataset",
        required=True,
        metavar="NAME",
        help="as in DATASETS.TEST: a name or JSON:FOLDER",
    )
    parser.add_argument(
        "--output", required=True, metavar="PATH", help="a picture (contact sheet) or a folder"
    )
    parser.add_argument(
        "--conf-threshold",
        type=float,
        default=0.3,
        metavar="SCORE",
        help="lowest score that is drawn",
    )
    parser.add_argument(
        "--count", type=positive, default=12, metavar="N", help="images on a contact sheet"
    )
    parser.add_argument(
        "--columns", type=positive, default=3, metavar="N", help="columns of a contact sheet"
    )
    return parser


def read_results(path: Path, dataset: CocoDetection) -> dict[int, Detections]:
    """Read the detections of a results file, by image id, best first.

    Raises:
        DatasetError: the file is not a results file, or belongs to another data set.
    """
    try:
        entries = json.loads(path.read_text())
        by_image: dict[int, list[Any]] = defaultdict(list)
        for entry in entries:
            label = dataset.category_ids.index(entry["category_id"])
            by_image[entry["image_id"]].append((entry["score"], label, entry["bbox"]))
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror or error}") from error
    except (TypeError, KeyError, ValueError) as error:
        raise DatasetError(
            f"{path} is not a results file of {dataset.source.json_file}: {error}. Give the "
            "coco_instances_results.json that an evaluation on this data set wrote"
        ) from error
    unknown = by_image.keys() - set(dataset.image_ids.tolist())
    if unknown:
        raise DatasetError(f"{path}: image id {min(unknown)} is not in {dataset.source.json_file}")
    return {image: to_detections(rows) for image, rows in by_image.items()}


def to_detections(rows: list[tuple[float, int, list[float]]]) -> Detections:
    """Detections, best first, from (score, label, COCO box) rows."""
    scores, labels, boxes = zip(*sorted(rows, key=lambda row: -row[0]), strict=True)
    xyxy = torch.tensor(boxes, dtype=torch.float32)
    xyxy[:, 2:] += xyxy[:, :2]
    return Detections(xyxy, torch.tensor(scores), torch.tensor(labels))


def draw(dataset: CocoDetection, index: int, found: Detections | None, least: float) -> np.ndarray:
    """Draw the ground truth and the detections of the image at ``index`` of a data set.

    Args:
        found: detections in px of the image; None: there are none.
        least: lowest score that is drawn.
    """
    record = dataset.record(index)
    if found is None:
        empty = torch.empty(0)
        found = Detections(empty.reshape(0, 4), empty, empty.long())
    return draw_comparison(
        dataset.read_image(record),
        found[found.scores >= least],
        record.targets(),
        dataset.class_names,
    )


def run(args: argparse.Namespace) -> None:
    dataset = CocoDetection(find_dataset(args.dataset))
    results = read_results(Path(args.input), dataset)
    output = Path(args.output)
    sheet = output.suffix.lower() in PICTURES
    count = min(args.count, len(dataset)) if sheet else len(dataset)
    pictures = []
    for index in tqdm(spread_evenly(count, len(dataset)), unit="image", disable=None):
        found = results.get(int(dataset.image_ids[index]))
        picture = draw(dataset, index, found, args.conf_threshold)
        if sheet:
            pictures.append(picture)
        else:
            name = Path(dataset.record(index).file_name).relative_to(dataset.source.image_root)
            save((output / name).with_suffix(".jpg"), picture)
    if sheet:
        save(output, contact_sheet(pictures, args.columns, tile=max(pictures[0].shape[:2])))
    print(f"{count} of {len(dataset)} images, ground truth left, detections right: {output}")


def main(argv: list[str] | None = None) -> None:
    run_program(build_parser(), run, argv)


if __name__ == "__main__":
    main()
