"""A batch in parts, to save memory; losses and gradients add up to those of the whole batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from onenet.structures import send

from .distributed import processes

T = TypeVar("T")


def split(batch: Sequence[T], parts: int) -> list[Sequence[T]]:
    """Neighbouring parts of equal size.

    Raises:
        ValueError: there are no equal parts.
    """
    if not batch or len(batch) % parts:
        raise ValueError(f"a batch of {len(batch)} cannot be split into {parts} equal parts")
    size = len(batch) // parts
    return [batch[start : start + size] for start in range(0, len(batch), size)]


def shares(counts: Sequence[int], device: torch.device) -> Tensor:
    """Factors with which the losses of the parts add up to those of the whole batch.

    For losses divided by the mean number of targets
    (:func:`onenet.assignment.criterion.mean_targets`). All processes must call this together.

    Args:
        counts: this process' number of targets in each part.

    Returns:
        (parts,) float32, equal on all processes.
    """
    mean = send(torch.tensor(counts, dtype=torch.float32), device)
    if processes() > 1:
        dist.all_reduce(mean)
        mean /= processes()
    return mean.clamp(min=1) / mean.sum().clamp(min=1)


def forward_backward(
    model: nn.Module,
    parts: Sequence[Any],
    counts: Sequence[int],
    forward: Callable[[Any], dict[str, Tensor]],
    backward: Callable[[Tensor], Any],
) -> dict[str, Tensor]:
    """Add the gradients of all parts to those that ``model`` has.

    Equal to a single pass up to rounding if the network treats each image on its own. Batch norms
    in training see one part at a time, and images are padded to the largest of their part. If a
    loss is NaN or infinite, every gradient becomes NaN, on all processes.

    Args:
        model: what ``forward`` runs; several processes exchange its gradients only after the last
            part.
        counts: targets in each part.
        forward: from a part to its losses.
        backward: called with the sum of a part's losses.

    Returns:
        The losses of the whole batch, detached.
    """
    device = next(model.parameters()).device
    weights = shares(counts, device) if len(parts) > 1 else None
    totals: dict[str, Tensor] = {}
    for i, part in enumerate(parts):
        waits = i + 1 < len(parts) and isinstance(model, DistributedDataParallel)
        with model.no_sync() if waits else nullcontext():
            losses = forward(part)
            if weights is not None:
                losses = {name: weights[i] * loss for name, loss in losses.items()}
            total = sum(losses.values())
            backward(total * (1 + 0 * total.detach()))
        for name, loss in losses.items():
            totals[name] = totals[name] + loss.detach() if name in totals else loss.detach()
    return totals
