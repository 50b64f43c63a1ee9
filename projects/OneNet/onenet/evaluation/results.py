"""Detections in COCO's results format, and where both engines write them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from onenet.structures import Detections

RESULTS_FILE = "coco_instances_results.json"


def set_prefix(name: str, test_sets: Sequence[str]) -> str:
    """What metrics and results of a data set start with: ``NAME/`` where there are several.

    Args:
        name: one of ``test_sets``, the entries of ``DATASETS.TEST``.
    """
    return name.replace("/", "_") + "/" if len(test_sets) > 1 else ""


def results_folder(output_dir: str | Path, name: str, test_sets: Sequence[str]) -> Path:
    """The folder of a data set's results: ``inference`` in ``OUTPUT_DIR``, or a folder in that.

    Args:
        name, test_sets: see :func:`set_prefix`.
    """
    # Windows takes no colon, as in JSON:FOLDER, nor a backslash in the name of a folder.
    folder = re.sub(r'[\\:*?"<>|]', "_", set_prefix(name, test_sets))
    return Path(output_dir) / "inference" / folder


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


def complete_annotations(annotations: Iterable[dict[str, Any]]) -> None:
    """Add, in place, what COCO's evaluation needs and files for detection often leave out."""
    for number, annotation in enumerate(annotations, start=1):
        annotation["id"] = number  # COCO's evaluation takes a match with id 0 for no match
        annotation.setdefault("area", annotation["bbox"][2] * annotation["bbox"][3])
        annotation.setdefault("iscrowd", 0)
