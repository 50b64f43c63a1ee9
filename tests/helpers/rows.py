"""Assignments small enough to work out by hand: samples in a row, rules by place alone, matches as
triples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from onenet import ExclusiveMatcher, Matches, Predictions, TargetBatch, Targets
from onenet.assignment.zoo import AnchorOverlap, ThresholdMatcher
from onenet.ops.boxes import point_grid


def on_row(
    boxes: Sequence[Sequence[float]],
    scores: Sequence[float] | None = None,
    classes: int = 1,
    images: int = 1,
) -> Predictions:
    """Samples at x = 2, 6, 10 … in a row at y = 2, one a box, with scores of class 0."""
    boxes = torch.tensor(boxes, dtype=torch.float32).expand(images, -1, 4)
    count = boxes.shape[1]
    points = point_grid(1, count, 4)
    logits = torch.zeros(images, count, classes)
    if scores is not None:
        logits[..., 0] = torch.tensor(scores).logit()
    return Predictions(logits, boxes, points.repeat(1, 2), torch.zeros(count, dtype=torch.int64))


def targets(
    *boxes: Sequence[float],
    labels: Sequence[int] | None = None,
    size: tuple[int, int] = (40, 40),
) -> Targets:
    """Objects of class 0, unless ``labels`` say otherwise."""
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    labels = [0] * len(corners) if labels is None else labels
    return Targets(corners, torch.tensor(labels, dtype=torch.int64), size)


def batch(*images: Targets) -> TargetBatch:
    return TargetBatch.of(list(images), torch.device("cpu"))


def triples(matches: Matches) -> list[tuple[int, int, int]]:
    """(image, sample, target) of each match."""
    columns = (matches.image, matches.sample, matches.target)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def on(
    samples: Any, levels: Sequence[int] | None = None, boxes: Any = None, classes: int = 1
) -> Predictions:
    """An image of these samples, which predict themselves unless ``boxes`` say otherwise."""
    samples = torch.as_tensor(samples, dtype=torch.float32)
    boxes = samples if boxes is None else torch.tensor(boxes, dtype=torch.float32)
    levels = [0] * len(samples) if levels is None else levels
    logits = torch.zeros(1, len(samples), classes)
    return Predictions(logits, boxes[None], samples, torch.tensor(levels))


def threshold(scale: float = 8.0, **options: Any) -> ThresholdMatcher:
    """RetinaNet's rule."""
    return ThresholdMatcher(location=AnchorOverlap(scale=scale), class_weight=0.0, **options)


def exclusive(location: Any) -> ExclusiveMatcher:
    """A rule whose samples have one object each."""
    return ExclusiveMatcher(location=location, class_weight=0.0)
