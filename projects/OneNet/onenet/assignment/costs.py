"""What it costs to give a sample to a target (arXiv 2012.05780, section 3.2).

Every cost is a matrix (N, T): the N samples of an image against T targets, each target against the
samples of its own image. Unweighted, so that matchers weigh and add them; float32. In memory the
samples of one target lie side by side.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from onenet.ops.boxes import MIN_AREA
from onenet.structures import TargetBatch

# The logarithms' guard against log(0); part of the original's cost.
_EPS = 1e-8
# Keeps a sample of the wrong level from being chosen, whatever the other costs.
_WRONG_LEVEL = 9999.0


def focal_cost(
    logits: Tensor, targets: TargetBatch, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """(N, T) change of the focal loss if a sample became positive for a target's class.

    Args:
        logits: (B, N, K) class scores before the sigmoid; only the targets' classes are read.
    """
    p = logits.mT[targets.image, targets.labels].float().sigmoid_()
    q = 1 - p
    positive = (p + _EPS).log_().mul_(q**gamma).mul_(-alpha)
    negative = q.add_(_EPS).log_().mul_(p.pow_(gamma)).mul_(alpha - 1)
    return positive.sub_(negative).mT


def l1_cost(boxes: Tensor, targets: TargetBatch) -> Tensor:
    """(N, T) L1 distance of (B, N, 4) boxes, each coordinate in parts of the image's size."""
    apart, _, _ = _pair(boxes, targets)
    return _in_parts(apart, targets).mT


def giou_cost(boxes: Tensor, targets: TargetBatch) -> Tensor:
    """(N, T) negative generalised IoU of (B, N, 4) boxes."""
    return _minus_giou(*_pair(boxes, targets)).mT


def centre_cost(points: Tensor, targets: TargetBatch) -> Tensor:
    """(N, T) twice the L1 distance of (N, 2) points to the centres, in parts of the image."""
    low, high = _corners(targets)
    return _in_parts((2 * points.T[:, None] - (low + high)).abs_(), targets).mT


def level_cost(points: Tensor, levels: Tensor, targets: TargetBatch, sizes: Tensor) -> Tensor:
    """9999 where a target is not of the sizes that the sample's level answers for, else 0 (FCOS).

    The size is the largest distance of the point to the target's four sides.

    Args:
        points: (N, 2) px.
        levels: (N,) int64.
        sizes: (levels, 2) px, smallest and largest size of each level, both included.

    Returns:
        (N, T).
    """
    low, high = _corners(targets)
    points = points.T[:, None]
    x, y = torch.maximum(points - low, high - points)
    size = torch.maximum(x, y)
    smallest, largest = sizes[levels].T
    return (((size < smallest) | (size > largest)).to(points.dtype) * _WRONG_LEVEL).mT


def _corners(targets: TargetBatch) -> tuple[Tensor, Tensor]:
    """Upper left and lower right corners, (2, T, 1) each, x before y."""
    return targets.boxes.T[:2, :, None], targets.boxes.T[2:, :, None]


def _pair(boxes: Tensor, targets: TargetBatch) -> tuple[Tensor, Tensor, Tensor]:
    """All that the measures of (B, N, 4) boxes and their targets need.

    On either axis a pair's hull is half the sum of the first two, its overlap half the difference.

    Returns:
        (2, T, N) px, in x and in y: the distances of the low and of the high sides, added up;
        the same shape: both lengths, added up; (T, N) px²: both areas, added up.
    """
    low, high = boxes.movedim(-1, 0).index_select(1, targets.image).split(2)
    target_low, target_high = _corners(targets)
    lengths, target_lengths = high - low, target_high - target_low
    areas = (lengths[0] * lengths[1]).add_(target_lengths[0] * target_lengths[1])
    apart = low.sub_(target_low).abs_().add_(high.sub_(target_high).abs_())
    return apart, lengths.add_(target_lengths), areas


def _in_parts(distances: Tensor, targets: TargetBatch, weight: float = 1.0) -> Tensor:
    """(T, N) from distances (2, T, N) in px, which are overwritten: their sum in parts of the
    image's width and height."""
    x, y = distances
    of_width, of_height = (weight / targets.scales[:, :2]).T[:, :, None]
    return x.mul_(of_width).addcmul_(y, of_height)


def _minus_giou(apart: Tensor, lengths: Tensor, areas: Tensor) -> Tensor:
    """(T, N) negative GIoU of :func:`_pair`'s three, the last two of which are overwritten."""
    width, height = (lengths - apart).clamp_(min=0)
    overlap = width.mul_(height)
    width, height = lengths.add_(apart)
    hull = width.mul_(height)
    # All four times as large as they are.
    union = areas.mul_(4).sub_(overlap)
    outside = (hull - union).div_(hull.clamp_(min=4 * MIN_AREA))
    return outside.sub_(overlap.div_(union.clamp_(min=4 * MIN_AREA)))


class PredictedLocation(nn.Module):
    """Location cost of the predicted boxes: L1 and GIoU (the paper's choice).

    Args:
        l1_weight, giou_weight: what the two terms are multiplied by.
    """

    def __init__(self, *, l1_weight: float = 5.0, giou_weight: float = 2.0) -> None:
        super().__init__()
        self.l1_weight, self.giou_weight = l1_weight, giou_weight

    def forward(
        self, boxes: Tensor, samples: Tensor, levels: Tensor, targets: TargetBatch
    ) -> Tensor:
        """(N, T) cost of ``boxes`` (B, N, 4); ``samples`` and ``levels`` are not looked at."""
        apart, lengths, areas = _pair(boxes, targets)
        cost = _minus_giou(apart, lengths, areas).mul_(self.giou_weight)
        return cost.add_(_in_parts(apart, targets, self.l1_weight)).mT


class PredefinedAnchor(PredictedLocation):
    """Location cost of the anchors themselves, whatever is predicted from them."""

    def forward(
        self, boxes: Tensor, samples: Tensor, levels: Tensor, targets: TargetBatch
    ) -> Tensor:
        """(N, T) cost of ``samples`` (N, 4) as boxes."""
        return super().forward(samples.expand_as(boxes), samples, levels, targets)


class PredefinedPoint(nn.Module):
    """Location cost of the grid points: distance to the targets' centres, no GIoU.

    Args:
        l1_weight: what the distance is multiplied by.
        level_sizes: for FCOS, (smallest, largest) size in px that each level answers for; ``None``
            where there is one level only.
    """

    def __init__(
        self,
        *,
        l1_weight: float = 5.0,
        level_sizes: Sequence[tuple[float, float]] | None = None,
    ) -> None:
        super().__init__()
        self.l1_weight = l1_weight
        sizes = None if level_sizes is None else torch.tensor(level_sizes, dtype=torch.float32)
        self.register_buffer("level_sizes", sizes, persistent=False)

    def forward(
        self, boxes: Tensor, samples: Tensor, levels: Tensor, targets: TargetBatch
    ) -> Tensor:
        """(N, T) cost of the points ``samples[:, :2]``."""
        points = samples[:, :2]
        cost = centre_cost(points, targets).mul_(self.l1_weight)
        if self.level_sizes is not None:
            cost.add_(level_cost(points, levels, targets, self.level_sizes))
        return cost
