"""Losses of matched samples: focal, L1 and GIoU (arXiv 2012.05780, equation 2)."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from onenet.errors import NonFiniteError
from onenet.ops.boxes import giou
from onenet.ops.fused_criterion import Location, Weights, fits, fused_losses
from onenet.structures import Matches, Predictions, TargetBatch, Targets

from .class_losses import ClassLoss, FocalLoss, Positives
from .costs import (
    ALPHA,
    CLASS_WEIGHT,
    GAMMA,
    GIOU_WEIGHT,
    L1_WEIGHT,
    PredefinedAnchor,
    PredefinedPoint,
    PredictedLocation,
)
from .matchers import Matcher, MinCostMatcher

logger = logging.getLogger(__name__)

# The logit of an ignored sample: no class loss has a value or a gradient there. Fits float16.
_SURE_NEGATIVE = -1e4


class Criterion(nn.Module):
    """Match predictions with targets and compute the weighted losses.

    loss = 2 · focal + 5 · L1 + 2 · GIoU, over the mean number of targets, or of positives.

    Args:
        matcher: see :mod:`onenet.assignment.matchers`.
        class_weight, l1_weight, giou_weight: weights of the three losses.
        alpha, gamma: of the focal loss.
        class_loss: see :mod:`onenet.assignment.class_losses`; ``None``: the focal loss.
        per_positive: divide the losses by the positives, for a matcher that gives a target many.

    Attributes:
        progress: how much of the training is done, from 0 to 1, for losses that change during it;
            training sets it before every iteration.
    """

    progress = 0.0

    def __init__(
        self,
        *,
        matcher: Matcher,
        class_weight: float = CLASS_WEIGHT,
        l1_weight: float = L1_WEIGHT,
        giou_weight: float = GIOU_WEIGHT,
        alpha: float = ALPHA,
        gamma: float = GAMMA,
        class_loss: ClassLoss | None = None,
        per_positive: bool = False,
    ) -> None:
        super().__init__()
        self.matcher = matcher
        self.weights: Mapping[str, float] = {
            "loss_ce": class_weight,
            "loss_giou": giou_weight,
            "loss_bbox": l1_weight,
        }
        self.alpha, self.gamma = alpha, gamma
        self.class_loss = class_loss or FocalLoss(alpha, gamma)
        self.per_positive = per_positive

    def forward(
        self, predictions: Predictions, targets: Sequence[Targets] | TargetBatch
    ) -> dict[str, Tensor]:
        """Weighted losses, each a scalar float32 over the mean of :meth:`count`.

        Args:
            predictions: of B images.
            targets: of these images, on any device.

        Returns:
            ``loss_ce`` (of all samples and classes), ``loss_giou`` and ``loss_bbox`` (L1
            in parts of the image's size), both over the matched pairs. All are NaN, and so is an
            additional ``cost``, where the matcher cannot choose from the cost; a warning says why.
        """
        device = predictions.logits.device
        targets = TargetBatch.of(targets, device)
        given = (predictions.logits, predictions.boxes, predictions.samples)
        if self.can_be_fused() and fits(*given):
            normaliser = mean_targets(len(targets), device)
            location = fused_location(self.matcher.location, predictions)
            losses = fused_losses(predictions, targets, location, fused_weights(self), normaliser)
            return dict(zip(self.weights, losses.unbind(), strict=True))
        try:
            matches = self.matcher(predictions, targets)
            losses, count = self.losses(predictions, targets, matches), self.count(targets, matches)
        except NonFiniteError as error:
            # Not raised: processes whose costs are finite wait for this one in mean_targets().
            logger.warning("%s", error)
            nan = torch.nan * (predictions.logits.sum() + predictions.boxes.sum())
            losses, count = dict.fromkeys([*self.weights, "cost"], nan), len(targets)
        normaliser = mean_targets(count, device)
        return {
            name: self.weights.get(name, 1.0) * loss / normaliser for name, loss in losses.items()
        }

    def can_be_fused(self) -> bool:
        """Whether this is the paper's rule as it stands, which :mod:`onenet.ops.fused_criterion`
        computes on CUDA; not where a subclass, or a hook that wants to see the matches, has a say.
        """
        matcher = self.matcher
        kinds = (type(self), type(matcher), type(self.class_loss))
        return (
            kinds == (Criterion, MinCostMatcher, FocalLoss)
            and type(matcher.location) in _LOCATIONS
            and not self.per_positive
            and not (matcher._forward_hooks or matcher._forward_pre_hooks)
        )

    def count(self, targets: TargetBatch, matches: Matches) -> int:
        """What the losses are divided by, once it is the mean over the processes."""
        return len(matches) if self.per_positive else len(targets)

    def losses(
        self, predictions: Predictions, targets: Sequence[Targets] | TargetBatch, matches: Matches
    ) -> dict[str, Tensor]:
        """The three losses of given matches, summed, neither weighted nor normalised."""
        targets = TargetBatch.of(targets, predictions.logits.device)
        number = targets.starts[matches.image] + matches.target
        boxes, scales = targets.boxes[number], targets.scales[number]
        predicted = predictions.boxes[matches.image, matches.sample].float()

        last = last_of_each_sample(matches, predictions.logits.shape[:2])
        positives = Positives(
            entries=(matches.image, matches.sample, targets.labels[number][last]),
            counted=last == torch.arange(len(last), device=last.device),
            target=number,
            targets=len(targets),
            predicted=predicted.detach(),
            boxes=boxes,
        )
        logits = predictions.logits
        if matches.ignored is not None:
            logits = logits.masked_fill(matches.ignored[..., None], _SURE_NEGATIVE)
        return {
            "loss_ce": self.class_loss(logits, positives, self.progress),
            "loss_giou": (1 - giou(predicted, boxes)).sum(),
            "loss_bbox": ((predicted - boxes) / scales).abs().sum(),
        }


class OneToManyCriterion(Criterion):
    """The losses of the one-to-many branch: over the mean number of positives, times a weight.

    Args:
        weight: λ, of all losses.
        fall: (from, to), shares of the training between which λ falls linearly to 0; empty: λ is
            constant.
        options: of :class:`Criterion`.
    """

    def __init__(self, *, weight: float = 1.0, fall: Sequence[float] = (), **options: Any) -> None:
        super().__init__(**options, per_positive=True)
        self.weight, self.fall = weight, tuple(fall)

    @property
    def current_weight(self) -> float:
        """λ at this point of the training."""
        if not self.fall:
            return self.weight
        start, end = self.fall
        return self.weight * min(1.0, max(0.0, (end - self.progress) / (end - start)))

    def forward(
        self, predictions: Predictions, targets: Sequence[Targets] | TargetBatch
    ) -> dict[str, Tensor]:
        """See :class:`Criterion`."""
        weight = self.current_weight
        losses = super().forward(predictions, targets)
        return {name: weight * loss for name, loss in losses.items()}


def last_of_each_sample(matches: Matches, shape: tuple[int, int]) -> Tensor:
    """(P,) int64: for each match, the number of the last match with its sample and image.

    Two targets may share a sample; the last of them gives its class.

    Args:
        matches: P of them.
        shape: images and samples, B and N.
    """
    images, samples = shape
    slot = matches.image * samples + matches.sample
    number = torch.arange(len(slot), device=slot.device)
    last = number.new_zeros(images * samples)
    return last.scatter_reduce_(0, slot, number, "amax")[slot]


_LOCATIONS = (PredictedLocation, PredefinedAnchor, PredefinedPoint)


def fused_location(cost: nn.Module, predictions: Predictions) -> Location:
    """A location cost of :mod:`onenet.assignment.costs` as the kernels take it."""
    if isinstance(cost, PredefinedPoint):
        kind = "points" if cost.level_sizes is None else "levels"
        return Location(kind, predictions.samples, cost.l1_weight, sizes=cost.level_sizes)
    boxes = predictions.samples if isinstance(cost, PredefinedAnchor) else predictions.boxes
    return Location("boxes", boxes, cost.l1_weight, cost.giou_weight)


def fused_weights(criterion: Criterion) -> Weights:
    """The weights of a criterion and of its matcher as the kernels take them."""
    matcher, loss = criterion.matcher, criterion.weights
    return Weights(
        class_cost=matcher.class_weight,
        cost_alpha=matcher.alpha,
        cost_gamma=matcher.gamma,
        class_loss=loss["loss_ce"],
        giou_loss=loss["loss_giou"],
        l1_loss=loss["loss_bbox"],
        alpha=criterion.class_loss.alpha,
        gamma=criterion.class_loss.gamma,
    )


_apart = False


@contextmanager
def alone() -> Iterator[None]:
    """A context in which each process computes losses of its own, without the others."""
    global _apart
    before, _apart = _apart, True
    try:
        yield
    finally:
        _apart = before


def mean_targets(count: int, device: torch.device) -> Tensor:
    """Scalar float32: the mean over all processes of such a number, at least 1.

    Within :func:`alone`, the number of this process.
    """
    if _apart or not (dist.is_available() and dist.is_initialized()):
        return torch.full((), float(max(count, 1)), device=device)
    mean = torch.full((), float(count), device=device)
    dist.all_reduce(mean)
    return (mean / dist.get_world_size()).clamp(min=1)
