"""The processes of a training: one, or several that work together."""

from __future__ import annotations

from typing import TypeVar

import torch.distributed as dist
from torch import nn

T = TypeVar("T")


def processes() -> int:
    """How many processes work together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if processes() > 1 else 0


def share_buffers(model: nn.Module) -> None:
    """Give all processes the first one's buffers; all call this together.

    In training the batch norms of each process follow its own images. The first one's are saved, so
    these are to be evaluated.
    """
    if processes() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def gather(value: T) -> list[T]:
    """The values of all processes, by rank; all call this together. Values are pickled."""
    values = [value] * processes()
    if len(values) > 1:
        dist.all_gather_object(values, value)
    return values
