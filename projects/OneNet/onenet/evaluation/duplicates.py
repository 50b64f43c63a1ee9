"""Duplicates: detections of an object that a detection of higher score has found already.

NMS exists to remove them; a detector that needs no NMS makes almost none (arXiv 2012.05780,
section 3.1 and figure 6).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_convert, box_iou

# Lowest IoU at which a detection counts for an object, as in AP50.
MIN_IOU = 0.5


def objects_of(
    boxes: Tensor,
    labels: Tensor,
    target_boxes: Tensor,
    target_labels: Tensor,
    min_iou: float = MIN_IOU,
) -> Tensor:
    """Find the object that each detection of an image belongs to.

    It is the object of the same class with the largest IoU; the first one in case of a tie.

    Args:
        boxes: (n, 4) xyxy px of the detections.
        labels: (n,) int64, their classes.
        target_boxes: (M, 4) xyxy px of the objects; M may be 0.
        target_labels: (M,) int64, their classes.
        min_iou: lowest IoU that counts.

    Returns:
        (n,) int64 index in [0, M) of the object; -1 if there is none.
    """
    if len(target_boxes) == 0:
        return torch.full_like(labels, -1)
    # The IoU of two boxes without area is NaN.
    iou = box_iou(boxes, target_boxes).nan_to_num(0.0)
    iou = iou.masked_fill(labels[:, None] != target_labels, -1.0)
    best, index = iou.max(dim=1)
    return torch.where(best >= min_iou, index, -1)


def find_duplicates(objects: Tensor) -> Tensor:
    """(n,) bool: whether an earlier detection belongs to the same object.

    Args:
        objects: (n,) int64, the object of each detection in descending order of scores; see
            :func:`objects_of`.
    """
    same = objects[:, None] == objects
    return same.tril(diagonal=-1).any(dim=1) & (objects >= 0)


def detections_per_object(
    annotations: Iterable[Mapping[str, Any]],
    results: Iterable[Mapping[str, Any]],
    *,
    min_iou: float = MIN_IOU,
) -> float:
    """Mean number of detections per detected object; 1 means no duplicates.

    If the data set has T objects, its T detections of highest score count. A fixed score threshold
    would be unfair, because models differ in confidence, for instance with and without the
    classification cost. A detection counts for one object; see :func:`objects_of`. Missed objects
    and detections of no object do not count: AP covers them.

    Args:
        annotations: COCO annotations of all images that count (:func:`~.truth.counted`); crowd
            regions are left out.
        results: detections of the same images in COCO's results format, finite, in any order.
        min_iou: lowest IoU with the object.

    Returns:
        At least 1; NaN if no object is found.
    """
    truth, found = defaultdict(list), defaultdict(list)
    for annotation in annotations:
        if not annotation.get("iscrowd", 0):
            truth[annotation["image_id"]].append(annotation)
    best = sorted(results, key=lambda result: -result["score"])
    for result in best[: sum(map(len, truth.values()))]:
        found[result["image_id"]].append(result)
    detections = matched = 0
    for image in truth.keys() & found.keys():
        objects = objects_of(*_arrays(found[image]), *_arrays(truth[image]), min_iou)
        objects = objects[objects >= 0]
        detections += len(objects)
        matched += len(objects.unique())
    return detections / matched if matched else float("nan")


def duplicates_line(mean: float) -> str:
    """The log line for a result of :func:`detections_per_object`."""
    if math.isnan(mean):
        return "duplicates: no object was found"
    return f"duplicates: {mean:.2f} detections per matched object"


def _arrays(entries: list[Mapping[str, Any]]) -> tuple[Tensor, Tensor]:
    """(n, 4) xyxy boxes and (n,) category ids."""
    boxes = torch.tensor([entry["bbox"] for entry in entries], dtype=torch.float64)
    labels = torch.tensor([entry["category_id"] for entry in entries])
    return box_convert(boxes, "xywh", "xyxy"), labels
