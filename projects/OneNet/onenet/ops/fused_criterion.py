"""Matching, focal, L1 and GIoU loss with their gradients in a few kernels, on CUDA with Triton.

The plain form stands in :mod:`onenet.assignment`, and tests hold this one to it. The plain form
runs on the CPU, where Triton is missing, and with any other matcher, class loss or location cost.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from onenet.structures import Predictions, TargetBatch

logger = logging.getLogger(__name__)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Of a program, found on an H100: samples, logits and targets that it looks at together, and warps.
_ROWS, _BLOCK, _COSTED_TOGETHER, _WARPS = 64, 1024, 4, 4
# Targets among which it looks for those of one sample.
_TOGETHER = 128


@dataclass(frozen=True)
class Location:
    """What the location cost compares with the targets.

    Attributes:
        kind: "boxes" (by L1 and GIoU), "points" (by the distance of centres), or "levels": points
            that answer for the sizes of their level.
        boxes: (B, N, 4) or (N, 4) float32 xyxy px; of a point the first two count.
        sizes: (levels, 2) px for "levels".
    """

    kind: str
    boxes: Tensor
    l1_weight: float
    giou_weight: float = 0.0
    sizes: Tensor | None = None


@dataclass(frozen=True)
class Weights:
    """Of the focal cost in matching, and of the three losses."""

    class_cost: float
    cost_alpha: float
    cost_gamma: float
    class_loss: float
    giou_loss: float
    l1_loss: float
    alpha: float
    gamma: float


def fits(logits: Tensor, *others: Tensor) -> bool:
    """Whether the kernels take logits and float32 tensors: on CUDA, in one piece, with Triton."""
    return (
        all(type(t) is Tensor and t.is_cuda and t.is_contiguous() for t in (logits, *others))
        and logits.dtype in DTYPES
        and all(other.dtype == torch.float32 for other in others)
        and not torch.compiler.is_compiling()
        and kernels() is not None
    )


@cache
def kernels(part: str = "criterion") -> ModuleType | None:
    """A module of :mod:`onenet.ops.kernels`; ``None`` and a line in the log without Triton."""
    if importlib.util.find_spec("triton") is None:
        logger.warning(
            "Triton is not installed: matching and losses run as torch's operators, several times "
            "slower. torch for CUDA brings it on Linux; elsewhere pip install triton-windows."
        )
        return None
    return importlib.import_module(f"onenet.ops.kernels.{part}")


def fused_losses(
    predictions: Predictions,
    targets: TargetBatch,
    location: Location,
    weights: Weights,
    normaliser: Tensor,
) -> Tensor:
    """(3,) float32: the weighted class, GIoU and L1 loss of minimum-cost matches.

    The backward pass gives the gradients that the forward pass has kept, and can run only once,
    without ``create_graph``. Nothing here waits for the device.

    Args:
        predictions: logits (B, N, K) of any dtype in ``DTYPES``, boxes (B, N, 4) float32.
        normaliser: scalar float32 that the losses are divided by.
    """
    keep = torch.is_grad_enabled() and (
        predictions.logits.requires_grad or predictions.boxes.requires_grad
    )
    return _FusedLosses.apply(
        predictions.logits,
        predictions.boxes,
        predictions.levels,
        targets,
        location,
        weights,
        normaliser,
        keep,
    )


def negatives(
    logits: Tensor, weight: float, gamma: float, kept: torch.dtype | None
) -> tuple[Tensor, Tensor | None]:
    """The focal loss of all logits taken as negatives, and its derivative in the same order.

    Args:
        logits: (n,).
        weight: of the loss.
        kept: dtype of the derivative; ``None``: it is not needed.

    Returns:
        (programs,) float32 that add up to the loss; (n,).
    """
    rows = 2**13
    tiles = -(-len(logits) // rows)
    losses = logits.new_empty(tiles, dtype=torch.float32)
    gradient = None if kept is None else torch.empty_like(logits, dtype=kept)
    nothing = logits
    with _device_of(logits):
        kernels().negatives_and_matches[(tiles, 1)](
            logits,
            nothing if gradient is None else gradient,
            *(nothing, losses, nothing, len(logits), 1, 1.0, weight),
            *(nothing, 0, nothing, nothing, nothing, nothing, nothing, nothing, 0, nothing),
            *(0.0, 0.0, 0.0, 0.0),
            CLASSES=1,
            ROWS=rows,
            BLOCK=_BLOCK,
            IMAGES=1,
            TOGETHER=1,
            GAMMA=gamma,
            COST_GAMMA=gamma,
            KEEP=gradient is not None,
            CLEAR=False,
            NORMALISE=False,
            LOCATION="none",
            FAST=_fast(logits),
            num_warps=_WARPS,
        )
    return losses, gradient


def scale_(gradient: Tensor, slope: Tensor) -> Tensor:
    """A contiguous tensor times a scalar on the device, in place; without a pass where it is 1."""
    block = 4096
    programs = min(-(-gradient.numel() // block), 2048)
    with _device_of(gradient):
        kernels("gradients").scale[(programs,)](
            gradient, slope, gradient.numel(), BLOCK=block, num_warps=8
        )
    return gradient


class _FusedLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        boxes: Tensor,
        levels: Tensor,
        targets: TargetBatch,
        location: Location,
        weights: Weights,
        normaliser: Tensor,
        keep: bool,
    ) -> Tensor:
        images, samples, classes = logits.shape
        device, w = logits.device, weights
        # In float16 small gradients would vanish before the loss scale multiplies them.
        dtype = torch.float32 if logits.dtype == torch.float16 else logits.dtype
        gradient = torch.empty_like(logits, dtype=dtype) if keep else logits
        box_gradient = torch.empty_like(boxes) if keep else boxes
        number = len(targets)
        best = torch.full(
            (number,), kernels("formulas").NO_SAMPLE, dtype=torch.int64, device=device
        )
        tiles = -(-samples // _ROWS)
        of_tiles = torch.empty(images * tiles, device=device)
        of_targets, result = torch.empty(number, 3, device=device), torch.empty(3, device=device)
        of_image = location.boxes.stride(0) if location.boxes.dim() == 3 else 0
        sizes = levels if location.sizes is None else location.sizes
        padded = 2 ** (images - 1).bit_length()
        counts = (targets.counts, targets.counts.stride(0), best)
        with _device_of(logits):
            kernels().negatives_and_matches[(tiles, images)](
                *(logits, gradient, box_gradient, of_tiles, normaliser, samples, images),
                *(w.class_loss, 1 - w.alpha),
                *(location.boxes, of_image, levels, sizes),
                *(targets.boxes, targets.scales, targets.labels, *counts),
                *(w.class_cost, location.l1_weight, location.giou_weight, w.cost_alpha),
                CLASSES=classes,
                ROWS=_ROWS,
                BLOCK=_BLOCK,
                IMAGES=padded,
                TOGETHER=_COSTED_TOGETHER,
                GAMMA=w.gamma,
                COST_GAMMA=w.cost_gamma,
                KEEP=keep,
                CLEAR=keep,
                NORMALISE=True,
                LOCATION=location.kind if number else "none",
                FAST=_fast(logits),
                num_warps=_WARPS,
            )
            if number:
                kernels().positives[(number,)](
                    *(logits, gradient, boxes, normaliser, samples, images),
                    *(w.class_loss, w.alpha),
                    *(targets.boxes, targets.scales, targets.labels, targets.image),
                    *(*counts, of_targets),
                    CLASSES=classes,
                    IMAGES=padded,
                    TOGETHER=_TOGETHER,
                    GAMMA=w.gamma,
                    KEEP=keep,
                    num_warps=1,
                )
            kernels().add_up[(1,)](
                *(of_tiles, images * tiles, of_targets, number, normaliser),
                *(w.class_loss, w.giou_loss, w.l1_loss, result),
                BLOCK=1024,
                num_warps=8,
            )
        if keep:
            ctx.save_for_backward(gradient, box_gradient, boxes, normaliser, best)
            ctx.targets, ctx.weights = targets, weights
            ctx.dtype, ctx.spent = logits.dtype, False
        return result

    @staticmethod
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor | None, ...]:
        check_once(ctx)
        gradient, box_gradient, boxes, normaliser, best = ctx.saved_tensors
        targets, w, slopes = ctx.targets, ctx.weights, slopes.contiguous()
        if ctx.needs_input_grad[0]:
            scale_(gradient, slopes)
        if ctx.needs_input_grad[1] and len(targets):
            images, samples = boxes.shape[:2]
            with _device_of(boxes):
                kernels("gradients").box_slopes[(len(targets),)](
                    *(slopes, boxes, box_gradient, normaliser, samples, images),
                    *(w.giou_loss, w.l1_loss),
                    *(targets.boxes, targets.scales, targets.image),
                    *(targets.counts, targets.counts.stride(0), best),
                    IMAGES=2 ** (images - 1).bit_length(),
                    TOGETHER=_TOGETHER,
                    num_warps=1,
                )
        none = [None] * (len(ctx.needs_input_grad) - 2)
        return gradient.to(ctx.dtype), box_gradient, *none


def check_once(ctx: Any) -> None:
    """Note that the gradient of a context was given away.

    Raises:
        RuntimeError: it was before, or ``create_graph`` asks for more.
    """
    if ctx.spent or torch.is_grad_enabled():
        raise RuntimeError(
            "the focal loss scales its gradient in place: backward() can go through it once "
            "only, without create_graph; add up the losses first, or compute it again"
        )
    ctx.spent = True


def _fast(tensor: Tensor) -> bool:
    """Whether NVIDIA's instructions are there: not in Triton's interpreter, nor on AMD's cards."""
    return tensor.is_cuda and torch.version.hip is None


def _device_of(tensor: Tensor) -> Any:
    """Triton launches on the current device."""
    return torch.cuda.device_of(tensor)
