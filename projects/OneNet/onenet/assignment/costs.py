"""What it costs to give a sample to a target (arXiv 2012.05780, section 3.2).

    cost = 2 · focal + 5 · L1 + 2 · GIoU        (equation 3; the weights stand below)

Every cost is an (N, T) float32 matrix: the N samples of an image in rows, T targets in columns,
each target against the samples of its own image. The functions are unweighted; the location costs,
called with ``(predictions, targets)``, weigh their own terms. In memory the samples of one target
lie side by side.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from onenet.ops.boxes import giou
from onenet.ops.pairs import weighted_l1_giou
from onenet.structures import Predictions, TargetBatch

# The paper's weights, of the costs and of the losses alike.
CLASS_WEIGHT, L1_WEIGHT, GIOU_WEIGHT = 2.0, 5.0, 2.0
# Of the focal cost and of the focal loss (arXiv 1708.02002).
ALPHA, GAMMA = 0.25, 2.0

# Keeps log(0) out; part of the original's cost.
_EPS = 1e-8
# Outweighs all other costs, so that no sample of the wrong level is chosen.
_WRONG_LEVEL = 9999.0


def focal_cost(
    logits: Tensor, targets: TargetBatch, alpha: float = ALPHA, gamma: float = GAMMA
) -> Tensor:
    """(N, T) change of the focal loss if a sample became positive for a target's class.

    Args:
        logits: (B, N, K) class scores before the sigmoid; only the targets' classes are read.
    """
    p = logits.mT[targets.image, targets.labels].float().sigmoid()
    q = 1 - p
    positive = -alpha * (q**gamma * (p + _EPS).log())
    negative = -(1 - alpha) * (p**gamma * (q + _EPS).log())
    return (positive - negative).mT


def l1_cost(boxes: Tensor, targets: TargetBatch) -> Tensor:
    """(N, T) L1 distance of (B, N, 4) boxes; x in parts of the image's width, y of its height.

    :class:`PredictedLocation` computes it fused with :func:`giou_cost`, in :mod:`onenet.ops.pairs`.
    """
    distances = (boxes[targets.image] - targets.boxes[:, None]).abs()
    return (distances / targets.scales[:, None]).sum(dim=-1).mT


def giou_cost(boxes: Tensor, targets: TargetBatch) -> Tensor:
    """(N, T) negative generalised IoU of (B, N, 4) boxes; see :func:`l1_cost`."""
    return -giou(boxes[targets.image], targets.boxes[:, None]).mT


def centre_cost(points: Tensor, targets: TargetBatch) -> Tensor:
    """(N, T) twice the L1 distance of (N, 2) points to the centres, in parts of the image."""
    x, y = points.T[:, None]
    x1, y1, x2, y2 = targets.boxes.T[:, :, None]
    width, height = targets.scales.T[:2, :, None]
    return ((2 * x - (x1 + x2)).abs() / width + (2 * y - (y1 + y2)).abs() / height).mT


def level_cost(points: Tensor, levels: Tensor, targets: TargetBatch, sizes: Tensor) -> Tensor:
    """(N, T) 9999 where the sample's level does not answer for the target's size, else 0 (FCOS).

    The size is the largest distance of the point to the target's four sides.

    Args:
        points: (N, 2) px.
        levels: (N,) int64.
        sizes: (levels, 2) px, smallest and largest size of each level, both included.
    """
    x, y = points.T[:, None]
    x1, y1, x2, y2 = targets.boxes.T[:, :, None]
    size = torch.stack((x - x1, y - y1, x2 - x, y2 - y)).amax(dim=0)
    smallest, largest = sizes[levels].T
    return (((size < smallest) | (size > largest)).to(points.dtype) * _WRONG_LEVEL).mT


class PredictedLocation(nn.Module):
    """Location cost of the predicted boxes (the paper's choice).

    l1_weight · :func:`l1_cost` + giou_weight · :func:`giou_cost`, computed in one pass by
    :mod:`onenet.ops.pairs`.
    """

    def __init__(self, *, l1_weight: float = L1_WEIGHT, giou_weight: float = GIOU_WEIGHT) -> None:
        super().__init__()
        self.l1_weight, self.giou_weight = l1_weight, giou_weight

    def forward(self, predictions: Predictions, targets: TargetBatch) -> Tensor:
        """(N, T) cost of the boxes of B images."""
        return weighted_l1_giou(predictions.boxes, targets, self.l1_weight, self.giou_weight)


class PredefinedAnchor(PredictedLocation):
    """The same cost of the anchors themselves, whatever is predicted from them."""

    def forward(self, predictions: Predictions, targets: TargetBatch) -> Tensor:
        """(N, T) cost of the anchors."""
        anchors = predictions.samples.expand(len(predictions.logits), -1, -1)
        return weighted_l1_giou(anchors, targets, self.l1_weight, self.giou_weight)


class PredefinedPoint(nn.Module):
    """Location cost of the grid points: distance to the targets' centres, no GIoU.

    Args:
        l1_weight: weight of :func:`centre_cost`.
        level_sizes: for FCOS, (smallest, largest) size in px that each level answers for, see
            :func:`level_cost`; ``None`` where there is one level only.
    """

    def __init__(
        self,
        *,
        l1_weight: float = L1_WEIGHT,
        level_sizes: Sequence[tuple[float, float]] | None = None,
    ) -> None:
        super().__init__()
        self.l1_weight = l1_weight
        sizes = None if level_sizes is None else torch.tensor(level_sizes, dtype=torch.float32)
        self.register_buffer("level_sizes", sizes, persistent=False)

    def forward(self, predictions: Predictions, targets: TargetBatch) -> Tensor:
        """(N, T) cost of the points."""
        points = predictions.samples[:, :2]
        cost = self.l1_weight * centre_cost(points, targets)
        if self.level_sizes is not None:
            cost = cost + level_cost(points, predictions.levels, targets, self.level_sizes)
        return cost
