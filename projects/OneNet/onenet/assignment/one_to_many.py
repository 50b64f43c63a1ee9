"""Several samples for every target: for the one-to-many branch, or in place of minimum cost.

What a matcher looks at is a location cost, (N, T) like those of :mod:`onenet.assignment.costs`;
samples that a target cannot have cost infinity. :class:`Alignment` also serves POTO, which gives
one sample a target.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from onenet.ops.boxes import iou
from onenet.structures import Predictions, TargetBatch

from .costs import level_cost
from .matchers import Matcher

# Between the centres of neighbouring samples, px; anchors of one place differ by rounding.
_APART = 0.5


def centres(samples: Tensor) -> Tensor:
    """(N, 2) px, of (N, 4) anchors, or of grid points twice."""
    return (samples[:, :2] + samples[:, 2:]) / 2


def inside(points: Tensor, boxes: Tensor) -> Tensor:
    """(N, T) bool: whether (N, 2) points lie within (T, 4) boxes, not on their sides."""
    x, y = points.T[:, None]
    x1, y1, x2, y2 = boxes.T[:, :, None]
    return ((x > x1) & (x < x2) & (y > y1) & (y < y2)).mT


def spacing(predictions: Predictions) -> Tensor:
    """(N,) px from the centre of a sample to the next of its level; infinite for one alone.

    Both heads with several levels order samples by level, row and column; this needs no stride.
    """
    steps = centres(predictions.samples).diff(dim=0).amax(dim=1)
    level = predictions.levels[1:]
    apart = (steps > _APART) & (level == predictions.levels[:-1])
    # As many places as samples: the number of levels would make the host wait.
    least = steps.new_full((len(predictions.samples),), torch.inf)
    least.scatter_reduce_(0, level, torch.where(apart, steps, torch.inf), "amin")
    return least[predictions.levels]


class Alignment(nn.Module):
    """Minus the alignment p^α · IoU^β of the samples within a target's box.

    p is the score of the target's class, IoU that of the predicted box. With α and β for
    one-to-many: TOOD (arXiv 2108.07755) and YOLOv10; with (0.2, 0.8): the quality of POTO (DeFCN,
    arXiv 2012.03544).

    Args:
        class_power, iou_power: α and β.
        outside: the cost beyond the box: infinity, or 0 where one-to-one matching must go on.
    """

    def __init__(self, *, class_power: float, iou_power: float, outside: float = torch.inf) -> None:
        super().__init__()
        self.class_power, self.iou_power, self.outside = class_power, iou_power, outside

    def forward(self, predictions: Predictions, targets: TargetBatch) -> Tensor:
        """(N, T) cost, from -1 to 0 within the box."""
        score = predictions.logits.mT[targets.image, targets.labels].float().sigmoid()
        overlap = iou(predictions.boxes[targets.image], targets.boxes[:, None])
        cost = -(score**self.class_power * overlap**self.iou_power).mT
        within = inside(centres(predictions.samples), targets.boxes)
        return cost.masked_fill(~within, self.outside)


class CentreRegion(nn.Module):
    """The target's area in px² for the samples in the middle of its box: FCOS's centre sampling.

    A sample there is within the box and at most ``radius`` strides from its centre, in x and in y;
    where several targets claim one, the smallest gets it (arXiv 1904.01355, section 3.1; the centre
    is of the later arXiv 2006.09214).

    Args:
        radius: in strides of the sample's level.
        level_sizes: see :class:`~onenet.assignment.costs.PredefinedPoint`.
    """

    def __init__(
        self, *, radius: float, level_sizes: Sequence[tuple[float, float]] | None = None
    ) -> None:
        super().__init__()
        self.radius = radius
        sizes = None if level_sizes is None else torch.tensor(level_sizes, dtype=torch.float32)
        self.register_buffer("level_sizes", sizes, persistent=False)

    def forward(self, predictions: Predictions, targets: TargetBatch) -> Tensor:
        """(N, T) cost."""
        points, boxes = centres(predictions.samples), targets.boxes
        sides = boxes[:, 2:] - boxes[:, :2]
        reach = self.radius * spacing(predictions)
        away = (points[:, None] - (boxes[:, :2] + boxes[:, 2:]) / 2).abs().amax(dim=2)
        region = inside(points, boxes) & (away <= reach[:, None])
        if self.level_sizes is not None:
            wrong = level_cost(points, predictions.levels, targets, self.level_sizes)
            region &= wrong == 0
        return sides.prod(dim=1).expand_as(region).masked_fill(~region, torch.inf)


class TopKMatcher(Matcher):
    """Every target gets the ``topk`` cheapest samples within its box, by OneNet's own cost.

    At least one: a target that no sample lies in gets its cheapest of all. Targets may share a
    sample, as with :class:`~onenet.assignment.matchers.MinCostMatcher`, which this is for
    ``topk`` 1 but for the box.

    Args:
        topk: how many.
        options: of :class:`~onenet.assignment.matchers.Matcher`.
    """

    columnwise = True
    one_to_many = True

    def __init__(self, *, topk: int, **options: Any) -> None:
        super().__init__(**options)
        self.topk = topk

    @torch.no_grad()
    def costs(self, predictions: Predictions, targets: TargetBatch) -> Tensor:
        """(N, T) cost, infinite beyond a target's box, but for the cheapest of an empty one."""
        cost = super().costs(predictions, targets)
        within = inside(centres(predictions.samples), targets.boxes)
        first = torch.zeros_like(within).scatter_(0, cost.argmin(dim=0, keepdim=True), True)
        return cost.masked_fill(~(within | (first & ~within.any(dim=0))), torch.inf)

    def choose(self, cost: Tensor) -> tuple[Tensor, Tensor]:
        """The rows of each column's least, as far as they are finite, cheapest first."""
        best = cheapest(cost, self.topk)
        column, rank = best.values.isfinite().mT.nonzero(as_tuple=True)
        return best.indices[rank, column], column


class ExclusiveMatcher(Matcher):
    """Every target claims samples, and a contested sample goes to the claimant it costs least.

    Args:
        topk: how many each target claims, the cheapest; ``None``: all that it can have.
        options: of :class:`~onenet.assignment.matchers.Matcher`.
    """

    one_to_many = True

    def __init__(self, *, topk: int | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.topk = topk

    def choose(self, cost: Tensor) -> tuple[Tensor, Tensor]:
        """Samples and the columns that get them, ordered by column, from costs of one image."""
        if self.topk is not None:
            best = cheapest(cost, self.topk)
            cost = torch.full_like(cost, torch.inf).scatter_(0, best.indices, best.values)
        least, winner = cost.min(dim=1)
        mine = torch.zeros_like(cost, dtype=torch.bool).scatter_(1, winner[:, None], True)
        column, row = (mine & least.isfinite()[:, None]).mT.nonzero(as_tuple=True)
        return row, column

    def _choose_by_image(
        self, predictions: Predictions, targets: TargetBatch, masks: dict[int, Tensor]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """All images at once where the claims are few, so that a GPU's host waits once."""
        if self.topk is None or type(self).choose is not ExclusiveMatcher.choose:
            yield from super()._choose_by_image(predictions, targets, masks)
            return
        claims = [cheapest(cost, self.topk) for cost in self._costs_in_parts(predictions, targets)]
        cost = torch.cat([claim.values.mT for claim in claims])
        row = torch.cat([claim.indices.mT for claim in claims])
        images, samples = predictions.boxes.shape[:2]
        slot, cost = (targets.image[:, None] * samples + row).flatten(), cost.flatten()
        least = cost.new_full((images * samples,), torch.inf).scatter_reduce_(0, slot, cost, "amin")
        # Of equal claims, that of the first target.
        number = torch.arange(len(slot), device=slot.device)
        mine = number.masked_fill((cost > least[slot]) | ~cost.isfinite(), len(slot))
        first = torch.full_like(least, len(slot), dtype=mine.dtype)
        first.scatter_reduce_(0, slot, mine, "amin")
        kept = (first[slot] == number).nonzero().flatten()
        yield row.flatten()[kept], torch.div(kept, row.shape[1], rounding_mode="floor")


def cheapest(cost: Tensor, count: int) -> torch.return_types.topk:
    """The ``count`` least values of each column of (N, M) costs, rising, and their rows."""
    return cost.topk(min(count, len(cost)), dim=0, largest=False)
