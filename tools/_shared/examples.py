"""Images of a data set with their objects, for the programs that draw them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from onenet.data.dataset import CocoDetection
from onenet.data.images import read_image
from onenet.data.sources import find_dataset
from onenet.errors import DatasetError
from onenet.structures import Targets

PICTURES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True)
class Example:
    """An image and its objects.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        targets: in px of ``image``.
    """

    image: np.ndarray
    targets: Targets


def add_image_flags(parser: argparse.ArgumentParser, count: int) -> None:
    """``--dataset``, ``--input`` and ``--count``, which :func:`find_examples` reads."""
    parser.add_argument(
        "--dataset",
        metavar="NAME",
        help="as in DATASETS.TEST: a name or JSON:FOLDER (default: the config's first test set)",
    )
    parser.add_argument(
        "--input",
        nargs="+",
        metavar="IMAGE",
        help="images of the data set, by path or by their name in its JSON (default: some spread "
        "over it)",
    )
    parser.add_argument(
        "--count",
        type=int,
        default=count,
        metavar="N",
        help="images where --input is not given (default: %(default)s)",
    )


def open_dataset(name: str | None, test_sets: Sequence[str]) -> CocoDetection:
    """The data set of ``--dataset``, else the first of the config's test sets.

    Raises:
        DatasetError: there is neither, or its files are missing or wrong.
    """
    if name is None and not test_sets:
        raise DatasetError("DATASETS.TEST is empty: name the images' data set with --dataset")
    return CocoDetection(find_dataset(name or test_sets[0]))


def find_examples(
    dataset: CocoDetection, inputs: Sequence[str] | None, count: int
) -> list[Example]:
    """Images that have objects.

    Args:
        inputs: paths, or names as in the data set's JSON; None: ``count`` spread over the set.

    Raises:
        DatasetError: an image that is not in the data set, or has no objects.
    """
    records = [dataset.record(index) for index in range(len(dataset))]
    if inputs is None:
        records = [record for record in records if len(record.labels)]
        if count < 1 or not records:
            raise DatasetError(
                f"{dataset.source.json_file}: {len(records)} images with objects, --count {count}: "
                "at least one of each is needed"
            )
        spread = torch.linspace(0, len(records) - 1, min(count, len(records))).long()
        chosen = [records[i] for i in spread.tolist()]
    else:
        by_path = {Path(record.file_name).resolve(): record for record in records}
        chosen = []
        for text in inputs:
            named = dataset.source.image_root / text
            record = by_path.get(Path(text).resolve()) or by_path.get(named.resolve())
            if record is None or len(record.labels) == 0:
                problem = "is not in" if record is None else "has no objects in"
                raise DatasetError(f"--input {text} {problem} {dataset.source.json_file}")
            chosen.append(record)
    return [
        Example(
            read_image(record.file_name),
            Targets(
                torch.from_numpy(record.boxes),
                torch.from_numpy(record.labels),
                (record.height, record.width),
            ),
        )
        for record in chosen
    ]


def save(path: Path, picture: np.ndarray) -> None:
    """Write a (H, W, 3) uint8 RGB picture, in the format of the path's suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, picture[..., ::-1])[1].tobytes())
