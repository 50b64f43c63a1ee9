"""The rules of other detectors, to ask of each on one head: does it need NMS?

IoU thresholds (RetinaNet), the object's centre (CenterNet), ATSS and SimOTA. FCOS's rule and TOOD's
are in :mod:`onenet.assignment.one_to_many`, since the one-to-many branch has them. All but
:class:`ThresholdMatcher` are location costs, (N, T) like those of :mod:`onenet.assignment.costs`,
infinite for a sample that a target does not claim: ``ExclusiveMatcher`` gives each sample to the
claimant it costs least.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from onenet.ops.boxes import iou
from onenet.structures import Predictions, TargetBatch

from .one_to_many import ExclusiveMatcher, centres, cheapest, inside, spacing

# What a sample costs on a level that does not answer for the target: more than any distance.
_WRONG_LEVEL = 1e6
# Of anchors around one centre, the one of greatest IoU is the nearest by this part of a stride.
_TIE = 1e-3
# The mean of equal numbers may exceed them by rounding.
_ROUNDING = 1e-6
# SimOTA: keeps log(0) out, and what a sample costs beyond the box or beyond its middle.
_EPS, _BEYOND = 1e-8, 1e5


def anchors(predictions: Predictions, scale: float) -> Tensor:
    """(N, 4) xyxy px: the samples; for a grid point, the square of ``scale`` strides around it.

    The ATSS paper makes RetinaNet and FCOS alike so (arXiv 1912.02424, section 3.1, with scale 8).
    A point alone on its level, which has no stride to measure, gets a square without end: IoU 0.
    """
    samples = predictions.samples
    points, half = centres(samples), scale / 2 * spacing(predictions)[:, None]
    squares = torch.cat((points - half, points + half), dim=1)
    is_point = (samples[:, :2] == samples[:, 2:]).all(dim=1, keepdim=True)
    return torch.where(is_point, squares, samples)


class AnchorOverlap(nn.Module):
    """Minus the IoU of the anchors.

    Args:
        scale: side of a grid point's square, see :func:`anchors`.
    """

    def __init__(self, *, scale: float = 8.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, predictions: Predictions, targets: TargetBatch) -> Tensor:
        """(N, T) cost, from -1 to 0."""
        return -iou(anchors(predictions, self.scale), targets.boxes[:, None]).mT


class ThresholdMatcher(ExclusiveMatcher):
    """RetinaNet's rule (arXiv 1708.02002, section 4): IoU of the anchors against two thresholds.

    An anchor belongs to the target with which its IoU is greatest: positive where IoU ≥ ``high``,
    negative where IoU < ``low``, ignored between. With ``low_quality``, the anchors of a target's
    greatest IoU, ties included, are positive however low it is, each for the target that *it*
    overlaps most. That is torchvision's and Detectron2's rule, except that a target without overlap
    forces nothing: there, all anchors tie at IoU 0 and become positive.

    Args:
        low, high: IoU; low ≤ high.
        low_quality: whether to force matches.
        options: of :class:`~onenet.assignment.matchers.Matcher`; the cost is minus the IoU.
    """

    def __init__(
        self, *, low: float = 0.4, high: float = 0.5, low_quality: bool = True, **options: Any
    ) -> None:
        super().__init__(**options)
        self.low, self.high, self.low_quality = low, high, low_quality

    def choose(self, cost: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`~onenet.assignment.one_to_many.ExclusiveMatcher`."""
        return super().choose(cost.masked_fill(~self._positive(cost)[:, None], torch.inf))

    def ignored(self, cost: Tensor) -> Tensor:
        """See :meth:`Matcher.ignored`."""
        return (cost.amin(dim=1) <= -self.low) & ~self._positive(cost)

    def _positive(self, cost: Tensor) -> Tensor:
        """(N,) bool."""
        positive = cost.amin(dim=1) <= -self.high
        if self.low_quality:
            best = cost.amin(dim=0)
            positive |= ((cost == best) & (best < 0)).any(dim=1)
        return positive


class NearestCentre(nn.Module):
    """CenterNet's rule (arXiv 1904.07850, section 3): the cell that the target's centre lies in.

    The cost is the L1 distance of a sample's centre to the target's, in strides; among anchors of
    one centre, that of greatest IoU is the cheapest. On several levels, only those count that
    answer for half the target's longer side. The weaker negatives around the centre belong to
    CenterNet's loss: the baseline CenterNet has them.

    Args:
        level_sizes: (smallest, largest) half side in px that each level answers for; ``None``:
            there is one level.
    """

    def __init__(self, *, level_sizes: Sequence[tuple[float, float]] | None = None) -> None:
        super().__init__()
        sizes = None if level_sizes is None else torch.tensor(level_sizes, dtype=torch.float32)
        self.register_buffer("level_sizes", sizes, persistent=False)

    def forward(self, predictions: Predictions, targets: TargetBatch) -> Tensor:
        """(N, T) cost; every target can have every sample."""
        samples, boxes = predictions.samples, targets.boxes
        away = (centres(samples) - centres(boxes)[:, None]).abs().sum(dim=2)
        cost = away / spacing(predictions) - _TIE * iou(samples, boxes[:, None])
        if self.level_sizes is not None:
            half = (boxes[:, 2:] - boxes[:, :2]).amax(dim=1, keepdim=True) / 2
            smallest, largest = self.level_sizes[predictions.levels].T
            cost = cost + _WRONG_LEVEL * ((half < smallest) | (half > largest))
        return cost.mT


class AdaptiveThreshold(nn.Module):
    """ATSS (arXiv 1912.02424, algorithm 1): an IoU threshold from each target's own candidates.

    Candidates are, on every level, the ``topk`` anchors whose centres are nearest to the target's
    (all, where a level has fewer). With m and s the mean and the standard deviation of their IoU,
    positives are the candidates of IoU ≥ m + s whose centre lies within the box. A contested anchor
    goes to the target of greatest IoU.

    Args:
        topk: k, 9 in the paper.
        scale: side of a grid point's square, see :func:`anchors`.
    """

    def __init__(self, *, topk: int = 9, scale: float = 8.0) -> None:
        super().__init__()
        self.topk, self.scale = topk, scale

    def forward(self, predictions: Predictions, targets: TargetBatch) -> Tensor:
        """(N, T) cost: minus the IoU of the positives. Samples are ordered by level."""
        boxes, points = targets.boxes, centres(predictions.samples)
        overlap = iou(anchors(predictions, self.scale), boxes[:, None])  # (T, N), as all below
        away = (points - centres(boxes)[:, None]).square().sum(dim=2)
        near, start = [], 0
        for count in predictions.levels.bincount().tolist():
            part = away[:, start : start + count]
            near.append(start + part.topk(min(self.topk, count), largest=False).indices)
            start += count
        candidates = torch.cat(near, dim=1)
        found = overlap.gather(1, candidates)
        freedom = min(1, found.shape[1] - 1)  # a single candidate has no deviation
        threshold = found.mean(dim=1) + found.std(dim=1, correction=freedom)
        good = found >= threshold[:, None] - _ROUNDING
        good &= inside(points, boxes).mT.gather(1, candidates)
        cost = torch.full_like(overlap, torch.inf)
        return cost.scatter_(1, candidates, (-found).masked_fill(~good, torch.inf)).mT


class DynamicTopK(nn.Module):
    """SimOTA (arXiv 2107.08430, section 2.1): as many samples as good boxes are predicted.

    Candidates of a target are the samples in its box, or in its middle: at most ``radius`` strides
    from its centre, in x and in y. They cost

        BCE over all classes - ``iou_weight`` · log IoU + 10⁵ where not both in box and middle,

    of the predicted score and box. The target claims its k cheapest, where k is the sum of its
    ``topk`` greatest IoUs, rounded down, at least 1. A contested sample goes to the target it costs
    least. The constants and the candidates are those of YOLOX's code, whose score is the root of
    class times objectness; here it is the class's.

    Args:
        radius: in strides of the sample's level.
        topk: how many IoUs are added up.
        iou_weight: λ.
    """

    def __init__(self, *, radius: float = 2.5, topk: int = 10, iou_weight: float = 3.0) -> None:
        super().__init__()
        self.radius, self.topk, self.iou_weight = radius, topk, iou_weight

    def forward(self, predictions: Predictions, targets: TargetBatch) -> Tensor:
        """(N, T) cost of the claimed."""
        points, logits, boxes = centres(predictions.samples), predictions.logits, targets.boxes
        away = (points - centres(boxes)[:, None]).abs().amax(dim=2).mT
        within = inside(points, boxes)
        middle = away < self.radius * spacing(predictions)[:, None]
        overlap = iou(predictions.boxes[targets.image], boxes[:, None]).mT
        # Of class c, with logits x: the sum of softplus(x), less x_c.
        own = logits.mT[targets.image, targets.labels].float()
        cost = (predictions.entropy[targets.image] - own).mT
        cost = cost - self.iou_weight * (overlap + _EPS).log() + _BEYOND * ~(within & middle)

        beyond = ~(within | middle)
        count = min(self.topk, len(cost))
        good = overlap.masked_fill(beyond, 0).topk(count, dim=0).values
        wanted = good.sum(dim=0).floor().clamp(min=1)
        best = cheapest(cost.masked_fill(beyond, torch.inf), count)
        rank = torch.arange(count, device=cost.device)[:, None]
        claimed = best.values.masked_fill(rank >= wanted, torch.inf)
        return torch.full_like(cost, torch.inf).scatter_(0, best.indices, claimed)
