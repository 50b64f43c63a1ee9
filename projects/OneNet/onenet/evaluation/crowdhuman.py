"""CrowdHuman's metrics (arXiv 1805.00123) for one class: AP, log-average miss rate and recall."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# A match needs a larger overlap: the IoU with an object, or the part of a detection that lies in
# an ignored region.
OVERLAP = 0.5
# Miss rates are taken at these numbers of false positives per image: 0.01 to 1, evenly spaced on a
# logarithmic scale and rounded as in the official evaluation.
FALSE_POSITIVES = (0.01, 0.0178, 0.0316, 0.0562, 0.1, 0.1778, 0.3162, 0.5623, 1.0)
EPS = 1e-6  # px², added to the divisor of every overlap, as in the official evaluation

TRUE, FALSE, IGNORED = 1, 0, -1


@dataclass(frozen=True)
class CrowdHumanMetrics:
    """The metrics as fractions in [0, 1]; NaN if there is no object to find.

    Attributes:
        ap: area under the precision-recall curve by the trapezoidal rule, from the first detection
            on.
        mmr: log-average miss rate, MR^-2: the geometric mean of the miss rates at
            ``FALSE_POSITIVES``. Lower is better; it is 0 if nothing is missed at one of them.
        recall: fraction of objects that are found at all.
    """

    ap: float
    mmr: float
    recall: float

    def percent(self) -> dict[str, float]:
        """The metrics by their usual names, in per cent."""
        return {"AP": 100 * self.ap, "mMR": 100 * self.mmr, "Recall": 100 * self.recall}


def evaluate_crowdhuman(
    truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]]
) -> CrowdHumanMetrics:
    """Evaluate detections as CrowdHuman's official code does, with boxes clipped to the image.

    Args:
        truth: content of a COCO file with one class (:func:`~.truth.counted`); crowd annotations
            are ignored regions.
        results: detections of images in ``truth`` in COCO's results format, finite; all of them
            count, without a limit per image.
    """
    objects: dict[int, list] = defaultdict(list)
    regions: dict[int, list] = defaultdict(list)
    found: dict[int, list] = defaultdict(list)
    for annotation in truth["annotations"]:
        kind = regions if annotation.get("iscrowd", 0) else objects
        kind[annotation["image_id"]].append(annotation["bbox"])
    for result in results:
        found[result["image_id"]].append((*result["bbox"], result["score"]))

    scores, outcomes = [np.empty(0)], [np.empty(0, dtype=np.int64)]
    for image in sorted(truth["images"], key=lambda image: image["id"]):
        if rows := found[image["id"]]:
            rows = np.array(sorted(rows, key=lambda row: -row[-1]), dtype=np.float64)
            boxes = [
                _clipped(np.array(boxes, dtype=np.float64).reshape(-1, 4), image)
                for boxes in (rows[:, :4], objects[image["id"]], regions[image["id"]])
            ]
            scores.append(rows[:, 4])
            outcomes.append(match(*boxes))
    order = np.argsort(-np.concatenate(scores), kind="stable")
    outcome = np.concatenate(outcomes)[order]
    return summarize(
        outcome[outcome != IGNORED] == TRUE,
        objects=sum(map(len, objects.values())),
        images=len(truth["images"]),
    )


def match(boxes: np.ndarray, objects: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """Match the detections of an image to its objects, in descending order of scores.

    A detection takes the object of largest IoU among those that are left. If it finds none, it is
    ignored if it lies in an ignored region; a region can take any number of detections.

    Args:
        boxes: (n, 4) xyxy px of the detections, in descending order of scores.
        objects: (M, 4) xyxy px.
        regions: (R, 4) xyxy px of the ignored regions.

    Returns:
        (n,) int64: ``TRUE``, ``FALSE`` or ``IGNORED``.
    """
    area, shared = _area(boxes)[:, None], _intersection(boxes, objects)
    iou = shared / (area + _area(objects) - shared + EPS)
    inside = _intersection(boxes, regions) / (area + EPS)
    outcome = np.where((inside > OVERLAP).any(axis=1), IGNORED, FALSE)
    for i in np.flatnonzero((iou > OVERLAP).any(axis=1)):
        best = iou[i].argmax()
        if iou[i, best] > OVERLAP:
            outcome[i] = TRUE
            iou[:, best] = 0  # taken
    return outcome


def summarize(true: np.ndarray, *, objects: int, images: int) -> CrowdHumanMetrics:
    """Compute the metrics from the matched detections of a data set.

    Args:
        true: (n,) bool, whether each detection found an object, in descending order of scores
            over all images, without ignored detections.
        objects: number of objects to find.
        images: number of images in the data set, with or without objects.
    """
    if objects == 0:
        return CrowdHumanMetrics(float("nan"), float("nan"), float("nan"))
    if len(true) == 0:
        return CrowdHumanMetrics(ap=0.0, mmr=1.0, recall=0.0)
    hits = np.cumsum(true)
    count = np.arange(1, len(true) + 1)
    recall, precision = hits / objects, hits / count
    ap = np.sum(np.diff(recall) * (precision[1:] + precision[:-1]) / 2)
    # If there are fewer false positives than asked for, all detections count.
    at = np.searchsorted((count - hits) / images, FALSE_POSITIVES).clip(max=len(true) - 1)
    with np.errstate(divide="ignore"):  # the logarithm of 0
        mmr = np.exp(np.log(1 - recall[at]).mean())
    return CrowdHumanMetrics(ap=float(ap), mmr=float(mmr), recall=float(recall[-1]))


def _clipped(boxes: np.ndarray, image: Mapping[str, Any]) -> np.ndarray:
    """(n, 4) COCO boxes as xyxy, clipped so that upper left corners lie within the last pixel."""
    size = np.array([image["width"], image["height"]])
    upper_left = boxes[:, :2].clip(0, size - 1)
    lower_right = (boxes[:, :2] + boxes[:, 2:]).clip(0, size)
    return np.concatenate((upper_left, lower_right), axis=1)


def _area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _intersection(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n, m) px², the intersection of each of the n boxes ``a`` with each of the m boxes ``b``."""
    ax1, ay1, ax2, ay2 = a.T[:, :, None]
    bx1, by1, bx2, by2 = b.T
    width = np.minimum(ax2, bx2) - np.maximum(ax1, bx1)
    height = np.minimum(ay2, by2) - np.maximum(ay1, by1)
    return width.clip(min=0) * height.clip(min=0)
