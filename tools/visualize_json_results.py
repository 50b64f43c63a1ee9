"""Draw the detections of a COCO results file beside the ground truth.

    python tools/visualize_json_results.py \
        --input output/shapes/inference/coco_instances_results.json \
        --dataset datasets/shapes/annotations/instances_val.json:datasets/shapes/val \
        --output output/shapes/validation.jpg

``--output`` is a picture, for a contact sheet of some images, or a folder, for one picture per
image. Where two images would have one picture, such as a.jpg and a.png, their ids tell them apart.
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _shared.examples import PICTURES, add_results_flags, files_of, save
from tqdm import tqdm

from onenet.cli import positive, run_program
from onenet.data.dataset import CocoDetection, spread_evenly
from onenet.data.sources import find_dataset
from onenet.evaluation.results import read_results
from onenet.files import check_outputs
from onenet.structures import Detections
from onenet.visualization.boxes import contact_sheet, draw_comparison


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Draw the detections of a COCO results file beside the ground truth.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_results_flags(parser)
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


def detections_by_image(path: Path, dataset: CocoDetection) -> dict[int, Detections]:
    """The detections of a results file, by image id, best first.

    Raises:
        DatasetError: the file is not a results file, or belongs to another data set.
    """
    image_ids, category_ids = dataset.image_ids.tolist(), dataset.category_ids
    label_of = {category: label for label, category in enumerate(category_ids)}
    by_image: dict[int, list[Any]] = defaultdict(list)
    for entry in read_results(path, dataset.source.json_file, image_ids, category_ids):
        row = (entry["score"], label_of[entry["category_id"]], entry["bbox"])
        by_image[entry["image_id"]].append(row)
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


def picture_names(dataset: CocoDetection) -> list[Path]:
    """A .jpg for each image of a data set, relative to the folder of pictures.

    Named like the image or, where several images would share the name, with the image's id.
    """
    root = dataset.source.image_root
    files = [Path(dataset.record(index).file_name) for index in range(len(dataset))]
    names = [file.relative_to(root).with_suffix(".jpg") for file in files]
    uses = Counter(str(name).casefold() for name in names)
    return [
        name if uses[str(name).casefold()] == 1 else name.with_suffix(f".{image_id}.jpg")
        for name, image_id in zip(names, dataset.image_ids.tolist(), strict=True)
    ]


def run(args: argparse.Namespace) -> None:
    dataset = CocoDetection(find_dataset(args.dataset), need_annotations=False)
    results = detections_by_image(Path(args.input), dataset)
    output = Path(args.output)
    sheet = output.suffix.lower() in PICTURES
    targets = [output] if sheet else [output / name for name in picture_names(dataset)]
    check_outputs(targets, [args.input, *files_of(dataset)])
    count = min(args.count, len(dataset)) if sheet else len(dataset)
    pictures = []
    for index in tqdm(spread_evenly(count, len(dataset)), unit="image", disable=None):
        found = results.get(int(dataset.image_ids[index]))
        picture = draw(dataset, index, found, args.conf_threshold)
        if sheet:
            pictures.append(picture)
        else:
            save(targets[index], picture)
    if sheet:
        save(output, contact_sheet(pictures, args.columns, tile=max(pictures[0].shape[:2])))
    print(f"{count} of {len(dataset)} images, ground truth left, detections right: {output}")


def main(argv: list[str] | None = None) -> None:
    run_program(build_parser(), run, argv)


if __name__ == "__main__":
    main()
