"""Which detection finds which object, as COCO decides it at IoU 0.5, and what the others are."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision.ops import box_convert, box_iou

from onenet.data.annotations import sorted_categories

from .coco import renumbered
from .duplicates import MIN_IOU, objects_of


class Kind(IntEnum):
    """What a detection is, or what became of an object, at a score threshold.

    A detection is ``FOUND`` (it finds an object), ``DUPLICATE``, ``CONFUSED``, ``FALSE``,
    ``IGNORED`` (in a crowd region) or ``BELOW`` (the threshold). An object is ``FOUND``,
    ``CONFUSED`` or ``MISSED``.
    """

    FOUND = 0
    CONFUSED = 1
    DUPLICATE = 2
    FALSE = 3
    MISSED = 4
    IGNORED = 5
    BELOW = 6


@dataclass(frozen=True)
class Matching:
    """A data set's M objects and n detections, matched as in COCO's AP50.

    Attributes:
        boxes: (n, 4) float64 xyxy px of the detections, best score first.
        scores: (n,) float64.
        labels: (n,) int64, by the order of category ids.
        images: (n,) int64, index into the images of the data set.
        match: (n,) int64, index of the object that a detection finds; -1: none.
        ignored: (n,) bool: it lies in a crowd region, so that it counts neither way.
        object_boxes, object_labels, object_images: the same of the objects, without crowd regions.
        classes: K.
        image_count: B.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    images: np.ndarray
    match: np.ndarray
    ignored: np.ndarray
    object_boxes: np.ndarray
    object_labels: np.ndarray
    object_images: np.ndarray
    classes: int
    image_count: int

    def kinds(self, threshold: float) -> Kinds:
        """What each detection and object is if scores from ``threshold`` on count.

        A detection that finds nothing is a duplicate if it belongs to an object of its class
        (:func:`~.duplicates.objects_of`), which a better one has found. Otherwise, best score
        first, it is confused with the object of another class that it overlaps most among those
        that nothing has found or been confused with; the rest is false.
        """
        kept = self.scores >= threshold
        found = kept & (self.match >= 0)
        kinds = np.full(len(self.scores), Kind.BELOW)
        kinds[kept] = Kind.FALSE
        kinds[kept & self.ignored] = Kind.IGNORED
        kinds[found] = Kind.FOUND
        objects = np.full(len(self.object_labels), Kind.MISSED)
        objects[self.match[found]] = Kind.FOUND
        taken_for = np.full(len(kinds), -1)
        open_ones = np.flatnonzero(kinds == Kind.FALSE)
        of_image = _groups(self.object_images, self.image_count)
        for group in _groups(self.images[open_ones], self.image_count).values():
            rows = open_ones[group]
            there = of_image.get(int(self.images[rows[0]]))
            if there is None:
                continue
            mine = torch.from_numpy(self.boxes[rows]), torch.from_numpy(self.labels[rows])
            theirs = (
                torch.from_numpy(self.object_boxes[there]),
                torch.from_numpy(self.object_labels[there]),
            )
            repeated = objects_of(*mine, *theirs).numpy() >= 0
            kinds[rows[repeated]] = Kind.DUPLICATE
            iou = box_iou(mine[0], theirs[0]).nan_to_num(0.0).numpy()
            for row in np.flatnonzero(~repeated):
                free = np.where(objects[there] == Kind.MISSED, iou[row], 0.0)
                if free.max() >= MIN_IOU:
                    other = there[free.argmax()]
                    kinds[rows[row]] = objects[other] = Kind.CONFUSED
                    taken_for[rows[row]] = other
        return Kinds(threshold, kinds, objects, self._confusion(kinds, objects, taken_for))

    def _confusion(
        self, kinds: np.ndarray, objects: np.ndarray, taken_for: np.ndarray
    ) -> np.ndarray:
        table = np.zeros((self.classes + 1, self.classes + 1), np.int64)
        found, confused = kinds == Kind.FOUND, kinds == Kind.CONFUSED
        np.add.at(table, (self.labels[found], self.labels[found]), 1)
        truth = self.object_labels[taken_for[confused]]
        np.add.at(table, (truth, self.labels[confused]), 1)
        np.add.at(table, (self.object_labels[objects == Kind.MISSED], self.classes), 1)
        rest = (kinds == Kind.FALSE) | (kinds == Kind.DUPLICATE)
        np.add.at(table, (self.classes, self.labels[rest]), 1)
        return table


@dataclass(frozen=True)
class Kinds:
    """See :meth:`Matching.kinds`.

    Attributes:
        threshold: the lowest score that counts.
        detections: (n,) the ``Kind`` of each detection.
        objects: (M,) the ``Kind`` of each object.
        confusion: (K + 1, K + 1) int64: objects of the row's class that were detected as the
            column's. The last column is for missed objects, the last row for false and duplicate
            detections.
    """

    threshold: float
    detections: np.ndarray
    objects: np.ndarray
    confusion: np.ndarray


def match(truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> Matching:
    """Match the detections of a data set to its objects with pycocotools, at IoU 0.5.

    Args:
        truth: see :func:`~.truth.counted`; crowd regions hide detections, as in COCO's AP.
        results: detections in COCO's results format, finite, in any order; all count.
    """
    content, found = renumbered(truth, results)
    label_of = {c["id"]: k for k, c in enumerate(sorted_categories(dict(truth)))}
    objects = [a for a in content["annotations"] if not a["iscrowd"]]
    row_of = {annotation["id"]: row for row, annotation in enumerate(objects)}
    owner, ignored = np.full(len(found), -1), np.zeros(len(found), bool)
    if found and content["annotations"]:
        for entry in _evaluate(content, found):
            # loadRes numbers the detections from 1 in their order.
            rows = np.array(entry["dtIds"], np.int64) - 1
            hidden = entry["dtIgnore"][0].astype(bool)
            ignored[rows] = hidden
            matches = entry["dtMatches"][0].astype(np.int64)
            for row, number, hides in zip(rows, matches, hidden, strict=True):
                if number and not hides:
                    owner[row] = row_of[number]
    scores = np.array([r["score"] for r in found], np.float64)
    order = np.argsort(-scores, kind="stable")
    return Matching(
        boxes=_xyxy(found)[order],
        scores=scores[order],
        labels=_labels(found, label_of)[order],
        images=_images(found)[order],
        match=owner[order],
        ignored=ignored[order],
        object_boxes=_xyxy(objects),
        object_labels=_labels(objects, label_of),
        object_images=_images(objects),
        classes=len(label_of),
        image_count=len(content["images"]),
    )


def _evaluate(content: dict[str, Any], found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """pycocotools' matches of every image and class that has an object or a detection."""
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        objects = COCO()
        objects.dataset = content
        objects.createIndex()
        evaluation = COCOeval(objects, objects.loadRes(found), "bbox")
        evaluation.params.iouThrs = np.array([MIN_IOU])
        evaluation.params.areaRng = evaluation.params.areaRng[:1]
        evaluation.params.areaRngLbl = evaluation.params.areaRngLbl[:1]
        evaluation.params.maxDets = [len(found)]
        evaluation.evaluate()
    return [entry for entry in evaluation.evalImgs if entry is not None]


def _groups(keys: np.ndarray, count: int) -> dict[int, np.ndarray]:
    """The positions of each key in [0, count) that occurs, ascending."""
    order = np.argsort(keys, kind="stable")
    ends = np.cumsum(np.bincount(keys, minlength=count))
    parts = np.split(order, ends[:-1])
    return {key: part for key, part in enumerate(parts) if len(part)}


def _xyxy(entries: Sequence[Mapping[str, Any]]) -> np.ndarray:
    boxes = torch.tensor([e["bbox"] for e in entries], dtype=torch.float64).reshape(-1, 4)
    return box_convert(boxes, "xywh", "xyxy").numpy()


def _labels(entries: Sequence[Mapping[str, Any]], label_of: Mapping[int, int]) -> np.ndarray:
    return np.array([label_of[e["category_id"]] for e in entries], np.int64)


def _images(entries: Sequence[Mapping[str, Any]]) -> np.ndarray:
    return np.array([e["image_id"] for e in entries], np.int64) - 1
