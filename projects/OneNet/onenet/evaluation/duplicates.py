"""Duplicates: detections of an object that a better detection has found already.

NMS exists to remove them; a detector that needs no NMS makes next to none (arXiv 2012.05780,
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

# Overlap from which on a detection is of an object, as in AP50.
MIN_IOU = 0.5


def objects_of(
    boxes: Tensor,
    labels: Tensor,
    target_boxes: Tensor,
    target_labels: Tensor,
    min_iou: float = MIN_IOU,
) -> Tensor:
    """The object that each detection of an image is of: of its class, with the largest IoU.

    Args:
        boxes: (n, 4) xyxy px of the detections.
        labels: (n,) their classes.
        target_boxes: (M, 4) xyxy px of the objects; M = 0 is ordinary.
        target_labels: (M,) their classes.
        min_iou: least IoU.

    Returns:
        (n,) int64 in [0, M), the first of equals; -1 where there is no such object.
    """
    if len(target_boxes) == 0:
        return torch.full_like(labels, -1)
    # The IoU of two boxes without area is NaN.
    iou = box_iou(boxes, target_boxes).nan_to_num(0.0)
    iou = iou.masked_fill(labels[:, None] != target_labels, -1.0)
    best, index = iou.max(dim=1)
    return torch.where(best >= min_iou, index, -1)


def find_duplicates(objects: Tensor) -> Tensor:
    """(n,) bool: an earlier detection is of the same object.

    Args:
        objects: (n,) of detections in descending order of scores, see :func:`objects_of`.
    """
    same = objects[:, None] == objects
    return same.tril(diagonal=-1).any(dim=1) & (objects >= 0)


def detections_per_object(
    annotations: Iterable[Mapping[str, Any]],
    results: Iterable[Mapping[str, Any]],
    *,
    min_iou: float = MIN_IOU,
) -> float:
    """Mean number of detections of an object that is detected at all; 1 means no duplicates.

    The best detections of the data set count, as many as it has objects: no fixed score would be
    fair to models that are sure of themselves to different degrees, as those with and without
    classification cost are. Every detection counts for one object, see :func:`objects_of`.
    Objects that are not found, and detections of nothing, do not count: AP tells of them.

    Args:
        annotations: COCO's, of all images; crowd regions are left out.
        results: in COCO's results format, of the same images, in any order.
        min_iou: least IoU with the object.

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
    """How the log tells what :func:`detections_per_object` gives."""
    if math.isnan(mean):
        return "duplicates: no object is found"
    return f"duplicates: {mean:.2f} detections per matched object"


def _arrays(entries: list[Mapping[str, Any]]) -> tuple[Tensor, Tensor]:
    """(n, 4) xyxy boxes and (n,) category ids."""
    boxes = torch.tensor([entry["bbox"] for entry in entries], dtype=torch.float64)
    labels = torch.tensor([entry["category_id"] for entry in entries])
    return box_convert(boxes, "xywh", "xyxy"), labels
