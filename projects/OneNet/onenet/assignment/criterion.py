"""Losses of matched samples: focal, L1 and GIoU (arXiv 2012.05780, equation 2)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from onenet.errors import NonFiniteError
from onenet.ops.boxes import giou
from onenet.ops.chunks import chunks
from onenet.structures import Matches, Predictions, TargetBatch, Targets

from .matchers import Matcher

logger = logging.getLogger(__name__)
# With AVX-512 torch's log1p reads a constant under a mask, and as long as the constant's page is
# not mapped, the processor needs ten times as long for that. The mask selects a -0.0: here is one.
torch.full((64,), -0.0).log1p_()


def sparse_focal_loss(
    logits: Tensor,
    positives: tuple[Tensor, ...],
    alpha: float = 0.25,
    gamma: float = 2.0,
    counted: Tensor | None = None,
) -> Tensor:
    """Sigmoid focal loss (arXiv 1708.02002), summed, where few entries are positive.

    One pass takes all entries for negatives and keeps the gradient, then the positives are put
    right: no target tensor of the logits' size is made. The backward pass scales the gradient in
    place, so there can be one only, without ``create_graph``.

    Args:
        logits: any shape and floating dtype; computed in float32.
        positives: (T,) index tensors, as in ``logits[positives]``.
        counted: (T,) bool, False for the repetitions of a positive; ``None``: there are none.

    Returns:
        Scalar float32.
    """
    keep = logits.requires_grad and torch.is_grad_enabled()
    if counted is None:
        counted = torch.ones_like(positives[0], dtype=torch.bool)
    return _SparseFocalLoss.apply(logits, counted, alpha, gamma, keep, *positives)


class _SparseFocalLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        counted: Tensor,
        alpha: float,
        gamma: float,
        keep: bool,
        *positives: Tensor,
    ) -> Tensor:
        # In the order of memory, in which a transposed map is one piece too.
        order = sorted(range(logits.ndim), key=logits.stride, reverse=True)
        ordered = logits.permute(order)
        flat = ordered.reshape(-1)
        place = positives[0].new_zeros(())
        for dim in order:
            place = place * logits.shape[dim] + positives[dim]
        # float16 would lose small gradients before a loss scale has come to them.
        dtype = torch.float32 if logits.dtype == torch.float16 else logits.dtype
        kept = torch.empty_like(flat, dtype=dtype) if keep else None

        # A positive is the negative of a mirrored logit.
        loss, gradient = _as_negatives(-flat[place], alpha, gamma, keep)
        losses = [loss.mul_(counted).sum()]
        positive = gradient.neg_().to(dtype) if keep else None
        for part in chunks(flat.numel(), 1, logits.device):
            loss, gradient = _as_negatives(flat[part], 1 - alpha, gamma, keep)
            losses.append(_leave_out(loss, place - (part.start or 0)).sum())
            if keep:
                kept[part] = gradient
        if keep:
            kept[place] = positive
            kept = kept.view(ordered.shape).permute([order.index(d) for d in range(logits.ndim)])
            ctx.save_for_backward(kept)
            ctx.dtype, ctx.spent = logits.dtype, False
        return torch.stack(losses).sum()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        none = [None] * (len(ctx.needs_input_grad) - 1)
        if torch.compiler.is_compiling():
            (kept,) = ctx.saved_tensors
            return (kept * grad_output).to(ctx.dtype), *none
        if ctx.spent or torch.is_grad_enabled():
            raise RuntimeError(
                "the focal loss scales its gradient in place: backward() can go through it once "
                "only, without create_graph; add up the losses first, or compute this one anew"
            )
        ctx.spent = True
        (kept,) = ctx.saved_tensors
        return kept.mul_(grad_output).to(ctx.dtype), *none


def _as_negatives(
    x: Tensor, weight: float, gamma: float, with_gradient: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Focal loss of every logit as a negative, and its derivative, in float32.

    With p = sigmoid(x) and s = softplus(x), p^gamma · s and p^gamma · (p + gamma (1 - p) s), times
    ``weight``.
    """
    x = x.float()
    p, softplus = x.sigmoid(), F.softplus(x)
    factor = p.pow(gamma).mul_(weight)
    gradient = None
    if with_gradient:
        # Not 1 - p, of which too little is left where p is close to 1.
        q = (-x).sigmoid_()
        gradient = p.addcmul_(q, softplus, value=gamma).mul_(factor)
    return factor.mul_(softplus), gradient


def _leave_out(losses: Tensor, places: Tensor) -> Tensor:
    """Losses of a chunk, overwritten: 0 at the places, of which some may lie outside of it."""
    last = len(losses) - 1
    within = (places >= 0) & (places <= last)
    limits = torch.where(within, 0.0, torch.inf)
    return losses.scatter_reduce_(0, places.clamp(0, last), limits, "amin")


def last_of_each_sample(matches: Matches, shape: tuple[int, int]) -> Tensor:
    """(T,) int64: the number of the last match with the same sample of the same image.

    Two targets may share a sample; the last of them gives its class.

    Args:
        shape: images and samples, B and N.
    """
    images, samples = shape
    slot = matches.image * samples + matches.sample
    number = torch.arange(len(slot), device=slot.device)
    last = number.new_zeros(images * samples)
    return last.scatter_reduce_(0, slot, number, "amax")[slot]


def mean_targets(count: int, device: torch.device) -> Tensor:
    """Scalar float32: mean of the processes' numbers of targets, at least 1."""
    mean = torch.full((), float(count), device=device)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(mean)
        mean /= dist.get_world_size()
    return mean.clamp(min=1)


class Criterion(nn.Module):
    """Match predictions with targets and compute the weighted losses.

    Args:
        matcher: see :mod:`onenet.assignment.matchers`.
        class_weight, l1_weight, giou_weight: what the losses are multiplied by.
        alpha, gamma: of the focal loss.
    """

    def __init__(
        self,
        *,
        matcher: Matcher,
        class_weight: float = 2.0,
        l1_weight: float = 5.0,
        giou_weight: float = 2.0,
        alpha: float = 0.25,
        gamma: float = 2.0,
    ) -> None:
        super().__init__()
        self.matcher = matcher
        self.weights: Mapping[str, float] = {
            "loss_ce": class_weight,
            "loss_giou": giou_weight,
            "loss_bbox": l1_weight,
        }
        self.alpha, self.gamma = alpha, gamma

    def forward(
        self, predictions: Predictions, targets: Sequence[Targets] | TargetBatch
    ) -> dict[str, Tensor]:
        """Weighted losses, each a scalar float32 over the mean number of targets.

        Args:
            predictions: of B images.
            targets: of these images, on any device.

        Returns:
            ``loss_ce`` (focal, all samples and classes), ``loss_giou`` and ``loss_bbox`` (L1 in
            parts of the image's size), both over the matched pairs. Where the matcher
            can't choose from the cost, all are NaN, and with them a ``cost``; a warning says why.
        """
        device = predictions.logits.device
        targets = TargetBatch.of(targets, device)
        try:
            losses = self.losses(predictions, targets, self.matcher(predictions, targets))
        except NonFiniteError as error:
            # Not raised: other processes, whose costs are finite, wait for this one below.
            logger.warning("%s", error)
            nan = torch.nan * (predictions.logits.sum() + predictions.boxes.sum())
            losses = dict.fromkeys([*self.weights, "cost"], nan)
        normaliser = mean_targets(len(targets), device)
        return {
            name: self.weights.get(name, 1.0) * loss / normaliser for name, loss in losses.items()
        }

    def losses(
        self, predictions: Predictions, targets: Sequence[Targets] | TargetBatch, matches: Matches
    ) -> dict[str, Tensor]:
        """The three losses of given matches, summed, neither weighted nor normalised."""
        targets = TargetBatch.of(targets, predictions.logits.device)
        number = targets.starts[matches.image] + matches.target
        boxes, scales = targets.boxes[number], targets.scales[number]
        predicted = predictions.boxes[matches.image, matches.sample].float()

        last = last_of_each_sample(matches, predictions.logits.shape[:2])
        positives = (matches.image, matches.sample, targets.labels[number][last])
        is_last = last == torch.arange(len(last), device=last.device)
        return {
            "loss_ce": sparse_focal_loss(
                predictions.logits, positives, self.alpha, self.gamma, is_last
            ),
            "loss_giou": (1 - giou(predicted, boxes)).sum(),
            "loss_bbox": ((predicted - boxes) / scales).abs().sum(),
        }
