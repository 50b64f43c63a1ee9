"""Choosing images of a data set with their objects, for programs that draw them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from onenet.data.dataset import CocoDetection, spread_evenly
from onenet.data.image_files import find_files
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
    """Add ``--dataset``, ``--input`` and ``--count`` (by default ``count``).

    See :func:`open_dataset` and :func:`find_examples`.
    """
    parser.add_argument(
        "--dataset",
        metavar="NAME",
        help="as in DATASETS.TEST: a name or JSON:FOLDER (default: the config's first test set)",
    )
    parser.add_argument(
        "--input",
        nargs="+",
        metavar="IMAGE",
        help="images of the data set, by path or by their name in its JSON (default: images spread "
        "over the data set)",
    )
    parser.add_argument(
        "--count",
        type=int,
        default=count,
        metavar="N",
        help="number of images without --input (default: %(default)s)",
    )


def add_results_flags(parser: argparse.ArgumentParser) -> None:
    """Add ``--input``, a results file, and ``--dataset``, which both are required."""
    parser.add_argument(
        "--input",
        required=True,
        metavar="FILE",
        help="results in COCO's format, such as the coco_instances_results.json of a run",
    )
    parser.add_argument(
        "--dataset",
        required=True,
        metavar="NAME",
        help="as in DATASETS.TEST: a name or JSON:FOLDER",
    )


def open_dataset(name: str | None, test_sets: Sequence[str]) -> CocoDetection:
    """Open the data set of ``--dataset`` or, if it is not given, the config's first test set.

    Raises:
        DatasetError: there is neither, or its files are missing or wrong.
    """
    if name is None and not test_sets:
        raise DatasetError("DATASETS.TEST is empty: name the data set of the images by --dataset")
    return CocoDetection(find_dataset(name or test_sets[0]))


def find_examples(
    dataset: CocoDetection, inputs: Sequence[str] | None, count: int
) -> list[Example]:
    """Read images that have objects.

    Args:
        dataset: the data set to take them from.
        inputs: paths, or names as in the data set's JSON; None: ``count`` images spread over the
            data set.
        count: number of images if ``inputs`` is None; at least 1.

    Raises:
        DatasetError: an image is not in the data set, cannot be read, has no objects, or has
            another size than the JSON says.
    """
    records = [dataset.record(index) for index in range(len(dataset))]
    if inputs is None:
        records = [record for record in records if len(record.labels)]
        if count < 1 or not records:
            raise DatasetError(
                f"{dataset.source.json_file} has {len(records)} images with objects, and --count "
                f"is {count}; both must be at least 1"
            )
        chosen = [records[i] for i in spread_evenly(count, len(records))]
    else:
        by_path = {Path(record.file_name).resolve(): record for record in records}
        chosen = []
        for text in inputs:
            named = dataset.source.image_root / find_files(dataset.source, [text]).files[0]
            record = by_path.get(Path(text).resolve()) or by_path.get(named.resolve())
            if record is None or len(record.labels) == 0:
                problem = "is not in" if record is None else "has no objects in"
                raise DatasetError(f"--input {text} {problem} {dataset.source.json_file}")
            chosen.append(record)
    return [Example(dataset.read_image(record), record.targets()) for record in chosen]


def files_of(dataset: CocoDetection) -> list[Path]:
    """The annotation file and the images of a data set, which no output may overwrite."""
    images = (dataset.record(index).file_name for index in range(len(dataset)))
    return [dataset.source.json_file, *map(Path, images)]


def save(path: Path, picture: np.ndarray) -> None:
    """Write a (H, W, 3) uint8 RGB picture in the format of the path's suffix, with its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, picture[..., ::-1])[1].tobytes())
