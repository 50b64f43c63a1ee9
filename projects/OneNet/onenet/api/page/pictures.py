"""What the page draws, from detections and from assignments; knows nothing of the page."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.ops import batched_nms

from onenet.api.detections import ImageDetections
from onenet.assignment.explain import Assignment
from onenet.evaluation.duplicates import MIN_IOU
from onenet.evaluation.matching import Kind
from onenet.visualization.boxes import draw_marked, enlargement
from onenet.visualization.report_page import COLORS

Row = list[Any]
FOUND = ["class", "score", "x1", "y1", "x2", "y2"]
ASSIGNED = ["object", "class", "sample at x", "sample at y", "within its box", "cost"]


def rows_of(found: ImageDetections) -> list[Row]:
    """A row of ``FOUND`` for each detection; boxes in px of the image, to a tenth."""
    return [
        [name, round(float(score), 3), *(round(float(value), 1) for value in box)]
        for name, score, box in zip(found.names, found.scores, found.boxes, strict=True)
    ]


def duplicates_of(found: ImageDetections) -> np.ndarray:
    """(n,) bool: the detections that NMS would remove, for a better one of their class.

    The page has no ground truth for a picture that somebody brings; where there is some,
    :mod:`onenet.evaluation.duplicates` counts by object.
    """
    arrays = (found.boxes, found.scores, found.labels)
    kept = batched_nms(*map(torch.from_numpy, arrays), MIN_IOU)
    again = np.ones(len(found), dtype=bool)
    again[kept.numpy()] = False
    return again


def draw_duplicates(found: ImageDetections) -> Image.Image:
    """The image with its detections, in the report's colours; duplicates lie over the others."""
    again = duplicates_of(found)
    order = np.argsort(again, kind="stable")
    texts = [
        f"{'duplicate ' * bool(again[i])}{found.names[i]} {100 * found.scores[i]:.0f}%"
        for i in order
    ]
    colors = [COLORS[Kind.DUPLICATE if again[i] else Kind.FOUND] for i in order]
    scale = enlargement(found.image)
    return Image.fromarray(draw_marked(found.image, found.boxes[order], texts, colors, scale=scale))


def summary(found: ImageDetections) -> str:
    """How many detections, and how many of them are duplicates, as a line of Markdown."""
    again = int(duplicates_of(found).sum())
    many = "detection" if len(found) == 1 else "detections"
    some = "duplicate" if again == 1 else "duplicates"
    return f"**{len(found)}** {many}, **{again}** {some}"


def assignment_rows(assignment: Assignment, class_names: list[str]) -> list[Row]:
    """A row of ``ASSIGNED`` for each object, and the terms of its cost; px of the model's input."""
    rows = []
    for number, label in enumerate(assignment.targets.labels.tolist()):
        sample = int(assignment.positives[number])
        row: Row = [number + 1, class_names[label]]
        if sample < 0:
            rows.append([*row, *["none"] * (4 + len(assignment.terms))])
            continue
        x, y = assignment.points[sample].tolist()
        terms = [float(term[sample, number]) for term in assignment.terms.values()]
        cost = float(assignment.cost[sample, number])
        inside = "yes" if assignment.inside[number] else "no"
        row += [round(x, 1), round(y, 1), inside, round(cost, 3)]
        rows.append([*row, *(round(term, 3) for term in terms)])
    return rows
