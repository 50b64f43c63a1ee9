"""What the class scores of the samples learn: 1 for a positive, or how good its box is.

With p = sigmoid(logit), every loss is summed over all entries. A negative costs -p^γ log(1 - p), up
to a weight; the classes below say what a positive costs. A target t carries no gradient.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from onenet.ops.boxes import iou
from onenet.ops.focal import sparse_focal_loss

from .costs import ALPHA, GAMMA


@dataclass(frozen=True)
class Positives:
    """P matched pairs of a batch, as a class loss sees them.

    Attributes:
        entries: (P,) int64 indices of the image, the sample and the class: entries of the logits.
        counted: (P,) bool, False where a later target gives the sample its class.
        target: (P,) int64, the target's number in the batch.
        targets: how many targets the batch has.
        predicted, boxes: (P, 4) xyxy px, of the sample and of its target; without gradient.
    """

    entries: tuple[Tensor, Tensor, Tensor]
    counted: Tensor
    target: Tensor
    targets: int
    predicted: Tensor
    boxes: Tensor

    def iou(self) -> Tensor:
        """(P,) of the predicted boxes with their targets."""
        return iou(self.predicted, self.boxes)


class ClassLoss(ABC):
    """The loss of (B, N, K) logits, given the positives."""

    @abstractmethod
    def __call__(self, logits: Tensor, positives: Positives, progress: float) -> Tensor:
        """Scalar float32, summed.

        Args:
            progress: how much of the training is done, from 0 to 1.
        """


class FocalLoss(ClassLoss):
    """-α (1 - p)^γ log p for a positive, -(1 - α) p^γ log(1 - p) for a negative (the paper's).

    Args:
        alpha, gamma: α and γ (arXiv 1708.02002).
    """

    def __init__(self, alpha: float = ALPHA, gamma: float = GAMMA) -> None:
        self.alpha, self.gamma = alpha, gamma

    def __call__(self, logits: Tensor, positives: Positives, progress: float) -> Tensor:
        return sparse_focal_loss(
            logits, positives.entries, self.alpha, self.gamma, positives.counted
        )


class MatchabilityLoss(ClassLoss):
    """-t log p - (1 - t) log(1 - p) with t = IoU^γ for a positive; no α.

    The matchability-aware loss of DEIM (arXiv 2412.04234). IoU is near 0 at first, so t
    falls there from 1: t = 1 - r + r · IoU^γ, where r rises from 0 to 1 over the ramp.

    Args:
        gamma: γ, of the target and of the negatives.
        ramp: the share of the training over which the target changes; 0: t = IoU^γ from the start.
    """

    def __init__(self, gamma: float, ramp: float) -> None:
        self.gamma, self.ramp = gamma, ramp

    def __call__(self, logits: Tensor, positives: Positives, progress: float) -> Tensor:
        rate = min(1.0, progress / self.ramp) if self.ramp else 1.0
        target = 1 - rate + rate * positives.iou() ** self.gamma
        x = logits[positives.entries].float()
        entropy = F.binary_cross_entropy_with_logits(x, target, reduction="none")
        return _with_negatives(logits, x, entropy, positives, self.gamma)


class QualityFocalLoss(ClassLoss):
    """|t - p|^γ (-t log p - (1 - t) log(1 - p)) for a positive, with a soft t (one-to-many).

    t = s / max s · max IoU, where s = p · IoU^6 and the maxima are over the samples of one target:
    the target's best sample learns its best IoU (DDQ, arXiv 2303.12776, after TOOD).
    The loss is that of GFL (arXiv 2006.04388).

    Args:
        gamma: γ.
    """

    POWER = 6

    def __init__(self, gamma: float = GAMMA) -> None:
        self.gamma = gamma

    def __call__(self, logits: Tensor, positives: Positives, progress: float) -> Tensor:
        x = logits[positives.entries].float()
        p, overlap = x.detach().sigmoid(), positives.iou()
        quality = p * overlap**self.POWER
        best_quality, best_overlap = (
            quality.new_zeros(positives.targets).scatter_reduce_(0, positives.target, v, "amax")
            for v in (quality, overlap)
        )
        share = quality / best_quality[positives.target].clamp(min=torch.finfo().tiny)
        target = share * best_overlap[positives.target]
        entropy = F.binary_cross_entropy_with_logits(x, target, reduction="none")
        losses = (target - x.sigmoid()).abs() ** self.gamma * entropy
        return _with_negatives(logits, x, losses, positives, self.gamma)


def _with_negatives(
    logits: Tensor, x: Tensor, losses: Tensor, positives: Positives, gamma: float
) -> Tensor:
    """The losses (P,) of the positives and -p^γ log(1 - p) of all other entries, summed.

    Args:
        x: (P,) logits of the positives.
    """
    as_negatives = x.sigmoid() ** gamma * F.softplus(x)
    none = tuple(index[:0] for index in positives.entries)
    everywhere = sparse_focal_loss(logits, none, alpha=0.0, gamma=gamma)
    return everywhere + ((losses - as_negatives) * positives.counted).sum()
