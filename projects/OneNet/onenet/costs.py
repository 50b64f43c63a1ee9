"""What it costs to give a sample to a target (arXiv 2012.05780, section 3.2).

Every cost is a matrix (N, M): N samples of one image against its M targets, unweighted, so that
matchers weigh and add them. All in float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .boxes import encode_ltrb, giou, image_scale
from .structures import Targets

# The logarithms' guard against log(0); part of the original's cost.
_EPS = 1e-8
# Keeps a sample of the wrong level from being chosen, whatever the other costs.
_WRONG_LEVEL = 9999.0


def focal_cost(logits: Tensor, labels: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Change of the focal loss if a sample became positive for a target's class.

    Args:
        logits: (N, K) class scores before the sigmoid.
        labels: (M,) int64.

    Returns:
        (N, M). Only the columns of classes that occur are computed.
    """
    p = logits.index_select(1, labels).float().sigmoid()
    positive = alpha * (1 - p) ** gamma * -(p + _EPS).log()
    negative = (1 - alpha) * p**gamma * -(1 - p + _EPS).log()
    return positive - negative


def l1_cost(boxes: Tensor, targets: Targets) -> Tensor:
    """L1 distance of (N, 4) boxes to the targets, each coordinate in parts of the image's size."""
    scale = image_scale(targets.image_size, boxes)
    return torch.cdist(boxes / scale, targets.boxes / scale, p=1)


def giou_cost(boxes: Tensor, targets: Targets) -> Tensor:
    """Negative generalised IoU of (N, 4) boxes and the targets."""
    return -giou(boxes[:, None], targets.boxes[None])


def centre_cost(points: Tensor, targets: Targets) -> Tensor:
    """Twice the L1 distance of (N, 2) points to the targets' centres, in parts of the image."""
    scale = image_scale(targets.image_size, points)[:2]
    corner_sums = targets.boxes[:, :2] + targets.boxes[:, 2:]
    return torch.cdist(2 * points / scale, corner_sums / scale, p=1)


def level_cost(points: Tensor, levels: Tensor, targets: Targets, sizes: Tensor) -> Tensor:
    """9999 where a target is not of the sizes that the sample's level answers for, else 0 (FCOS).

    The size is the largest distance of the point to the target's four sides.

    Args:
        points: (N, 2) px.
        levels: (N,) int64.
        sizes: (levels, 2) px, smallest and largest size of each level, both included.
    """
    size = encode_ltrb(points[:, None], targets.boxes[None]).amax(dim=-1)
    low, high = sizes[levels, :, None].unbind(dim=1)
    return ((size < low) | (size > high)).to(points.dtype) * _WRONG_LEVEL


class PredictedLocation(nn.Module):
    """Location cost of the predicted boxes: L1 and GIoU (the paper's choice).

    Args:
        l1_weight, giou_weight: what the two terms are multiplied by.
    """

    def __init__(self, *, l1_weight: float = 5.0, giou_weight: float = 2.0) -> None:
        super().__init__()
        self.l1_weight, self.giou_weight = l1_weight, giou_weight

    def forward(self, boxes: Tensor, samples: Tensor, levels: Tensor, targets: Targets) -> Tensor:
        """(N, M) cost of ``boxes`` (N, 4), whose ``samples`` and ``levels`` are not looked at."""
        l1 = self.l1_weight * l1_cost(boxes, targets)
        return l1 + self.giou_weight * giou_cost(boxes, targets)


class PredefinedAnchor(PredictedLocation):
    """Location cost of the anchors themselves, whatever is predicted from them."""

    def forward(self, boxes: Tensor, samples: Tensor, levels: Tensor, targets: Targets) -> Tensor:
        """(N, M) cost of ``samples`` (N, 4) as boxes."""
        return super().forward(samples, samples, levels, targets)


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

    def forward(self, boxes: Tensor, samples: Tensor, levels: Tensor, targets: Targets) -> Tensor:
        """(N, M) cost of the points ``samples[:, :2]``."""
        points = samples[:, :2]
        cost = self.l1_weight * centre_cost(points, targets)
        if self.level_sizes is not None:
            cost = cost + level_cost(points, levels, targets, self.level_sizes)
        return cost
