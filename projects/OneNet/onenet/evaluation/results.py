"""Detections in COCO's results format: their entries, and the files of both engines."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onenet.errors import DatasetError
from onenet.files import read_json
from onenet.structures import Detections

logger = logging.getLogger(__name__)
RESULTS_FILE = "coco_instances_results.json"
MOST = 1e30  # the largest number of a results file


def set_prefix(name: str, test_sets: Sequence[str]) -> str:
    """What metrics and results of a data set start with: ``NAME/`` where there are several.

    Args:
        name: one of ``test_sets``, the entries of ``DATASETS.TEST``.
    """
    sets = list(dict.fromkeys(test_sets))
    if len(sets) < 2:
        return ""
    alike = [one for one in sets if _as_folder(one) == _as_folder(name)]
    number = alike.index(name)  # of the sets "a/b" and "a_b"
    return f"{name.replace('/', '_')}{f'_{number + 1}' if number else ''}/"


def _as_folder(name: str) -> str:
    # Windows takes none of these in the name of a folder; JSON:FOLDER has a colon.
    return re.sub(r'[/\\:*?"<>|]', "_", name)


def results_folder(output_dir: str | Path, name: str, test_sets: Sequence[str]) -> Path:
    """The folder of a data set's results: ``inference`` in ``OUTPUT_DIR``, or a folder in that.

    Args:
        name, test_sets: see :func:`set_prefix`.
    """
    return Path(output_dir) / "inference" / _as_folder(set_prefix(name, test_sets).rstrip("/"))


def to_coco(
    image_id: int, detections: Detections, category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """Detections of one image as entries of COCO's results format (boxes x, y, width, height).

    Args:
        detections: on the CPU, in px of the original image.
        category_ids: the annotation file's id of each label.
    """
    boxes = detections.boxes.clone()
    boxes[:, 2:] -= boxes[:, :2]
    rows = zip(boxes.tolist(), detections.scores.tolist(), detections.labels.tolist(), strict=True)
    return [
        {"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": score}
        for box, score, label in rows
    ]


def finite(name: str, results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The detections whose boxes and scores are finite; a warning counts the others.

    Args:
        name: of the data set.
        results: in COCO's results format.
    """
    numbers = np.array([(*r["bbox"], r["score"]) for r in results], dtype=np.float64)
    good = np.isfinite(numbers.reshape(-1, 5)).all(axis=1).tolist()
    parts: dict[bool, list[Any]] = {True: [], False: []}
    for result, is_good in zip(results, good, strict=True):
        parts[is_good].append(result)
    if bad := [result["image_id"] for result in parts[False]]:
        logger.warning(
            "%s: left out: detections with NaN or infinity (%d, in %d images, such as image %s). "
            "Weights that are not finite make them, and numbers too large for TEST.PRECISION",
            name,
            len(bad),
            len(set(bad)),
            bad[0],
        )
    return parts[True]


def read_results(
    file: Path, json_file: Path, image_ids: Iterable[int], category_ids: Iterable[int]
) -> list[dict[str, Any]]:
    """Read a results file and check every entry.

    Args:
        json_file: the data set's COCO file, for messages.
        image_ids, category_ids: of the data set.

    Raises:
        DatasetError: the file cannot be read, or an entry is wrong or belongs to another data set;
            names the entry.
    """
    entries = read_json(file)
    if not isinstance(entries, list):
        raise DatasetError(
            f"{file} is not a results file: expected a list of detections, got {_shown(entries)}"
        )
    known = {"image_id": set(image_ids), "category_id": set(category_ids)}
    for index, entry in enumerate(entries):
        if problem := _problem(entry, known):
            raise DatasetError(
                f"{file} is not a results file of {json_file}: [{index}]: {problem}. Give the "
                f"{RESULTS_FILE} that an evaluation on this data set wrote"
            )
    return entries


def _problem(entry: object, known: Mapping[str, set[int]]) -> str | None:
    """What is wrong with an entry of a results file."""
    if not isinstance(entry, dict):
        return f"must be an object with image_id, category_id, bbox and score, got {_shown(entry)}"
    for key, ids in known.items():
        value = entry.get(key)
        if type(value) is not int or value not in ids:
            return f"{key!r} is {_shown(value)}; {_ids(ids)}"
    box, score = entry.get("bbox"), entry.get("score")
    numbers = box if isinstance(box, list) else []
    if len(numbers) != 4 or not all(map(_is_pixels, numbers)) or min(numbers[2:]) < 0:
        return (
            "'bbox' must be [x, y, width, height] in px, four finite numbers, neither width nor "
            f"height below 0, got {_shown(box)}"
        )
    if not _is_pixels(score):
        return f"'score' must be a finite number, got {_shown(score)}"
    return None


def _is_pixels(value: object) -> bool:
    """Whether a value is a number that float32 holds, also when two of them are added."""
    return type(value) in (int, float) and abs(value) < MOST  # NaN is not


def _shown(value: object) -> str:
    """A value with its type, shortened."""
    return f"{value!r:.60} ({type(value).__name__})"


def _ids(ids: set[int]) -> str:
    if not ids:
        return "the data set has none"
    return f"must be one of the data set's ids, integers from {min(ids)} to {max(ids)}"
