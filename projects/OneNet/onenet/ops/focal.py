"""Sigmoid focal loss (arXiv 1708.02002) where few entries are positive."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .chunks import chunks
from .fused_criterion import check_once, fits, negatives

# AVX-512: log1p is 10× slower until the page with its constant is mapped; this call maps it.
torch.full((64,), -0.0).log1p_()


def focal_loss(logits: Tensor, positive: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """The plain formula, summed: what :func:`sparse_focal_loss` computes in a fraction of the time.

    With p = sigmoid(logits): -α (1 - p)^γ log p where positive, else -(1 - α) p^γ log(1 - p).

    Args:
        logits: any shape.
        positive: bool of that shape.
    """
    p, q = logits.sigmoid(), (-logits).sigmoid()  # q is 1 - p, exact near p = 1
    as_positive = -alpha * q**gamma * F.logsigmoid(logits)
    as_negative = -(1 - alpha) * p**gamma * F.logsigmoid(-logits)
    return torch.where(positive, as_positive, as_negative).sum()


def sparse_focal_loss(
    logits: Tensor,
    positives: tuple[Tensor, ...],
    alpha: float = 0.25,
    gamma: float = 2.0,
    counted: Tensor | None = None,
) -> Tensor:
    """:func:`focal_loss` where few entries are positive.

    One pass takes all entries for negatives and keeps the gradient; then the positives are
    corrected. No target tensor of the logits' size is made. The backward pass scales the gradient
    in place, so it can run only once, and without ``create_graph``.

    Args:
        logits: any shape and floating dtype; computed in float32.
        positives: (T,) index tensors, as in ``logits[positives]``.
        counted: (T,) bool, False where a positive is repeated; ``None``: none is.

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
        # In float16 small gradients would vanish before the loss scale multiplies them.
        dtype = torch.float32 if logits.dtype == torch.float16 else logits.dtype

        # A positive is the negative of a mirrored logit.
        loss, gradient = _as_negatives(-flat[place], alpha, gamma, keep)
        positive = gradient.neg_().to(dtype) if keep else None
        if fits(flat):
            parts, kept = negatives(flat, 1 - alpha, gamma, dtype if keep else None)
            instead, _ = _as_negatives(flat[place], 1 - alpha, gamma)
            losses = [parts.sum(), ((loss - instead) * counted).sum()]
        else:
            kept = torch.empty_like(flat, dtype=dtype) if keep else None
            losses = [loss.mul_(counted).sum()]
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
        check_once(ctx)
        (kept,) = ctx.saved_tensors
        return kept.mul_(grad_output).to(ctx.dtype), *none


def _as_negatives(
    x: Tensor, weight: float, gamma: float, with_gradient: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Focal loss of every logit taken as a negative, and its derivative, in float32.

    With p = sigmoid(x) and s = softplus(x), p^gamma · s and p^gamma · (p + gamma (1 - p) s), times
    ``weight``.
    """
    x = x.float()
    p, softplus = x.sigmoid(), F.softplus(x)
    factor = p.pow(gamma).mul_(weight)
    gradient = None
    if with_gradient:
        # Not 1 - p, which loses precision near p = 1.
        q = (-x).sigmoid_()
        gradient = p.addcmul_(q, softplus, value=gamma).mul_(factor)
    return factor.mul_(softplus), gradient


def _leave_out(losses: Tensor, places: Tensor) -> Tensor:
    """Set the losses of a chunk to 0 at the places, in place; places outside it are ignored."""
    last = len(losses) - 1
    within = (places >= 0) & (places <= last)
    limits = torch.where(within, 0.0, torch.inf)
    return losses.scatter_reduce_(0, places.clamp(0, last), limits, "amin")
