"""The work of one iteration, the same in both engines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import Tensor, nn

from onenet.errors import ConfigError

from .accumulation import forward_backward, split
from .guard import Guard
from .history import GRADIENT
from .oom import memory_errors, training_advice

Item = TypeVar("Item")
_ONE_VALUE = "Expected more than 1 value per channel"  # of torch's batch norms


def train_step(
    cfg: Any,
    model: nn.Module,
    guard: Guard,
    batch: Sequence[Item],
    *,
    count: Callable[[Item], int],
    forward: Callable[[Sequence[Item]], dict[str, Tensor]],
    backward: Callable[[Tensor], Any],
) -> dict[str, Tensor]:
    """Compute the gradients of a batch, in parts where the config says so, and update the weights.

    The guard leaves the weights alone where a gradient is NaN or infinite. The schedule and the
    moving average follow this.

    Args:
        cfg: reads SOLVER.ACCUMULATE, and what the advice of an ``OutOfMemoryError`` names.
        model: what ``forward`` runs, with what several processes wrap around it.
        guard: of the model's optimiser.
        batch: this process' share.
        count: gives the number of targets of an item.
        forward: from a part of the batch to its losses.
        backward: called with the sum of a part's losses.

    Returns:
        This process' detached losses and the ``GRADIENT``, scalars on the device. Nothing here
        waits for the device unless the guard has a scaler.

    Raises:
        OutOfMemoryError: names the settings that need less.
        ConfigError: a batch norm gets one value per channel.
    """
    parts = split(batch, cfg.SOLVER.ACCUMULATE)
    counts = [sum(map(count, part)) for part in parts]
    with memory_errors(without_wrapper(model), lambda: training_advice(cfg)), _norm_errors(cfg):
        guard.keep()
        guard.optimizer.zero_grad(set_to_none=True)
        losses = forward_backward(model, parts, counts, forward, backward)
        return {**losses, GRADIENT: guard.step()}


@contextmanager
def _norm_errors(cfg: Any) -> Iterator[None]:
    """Say what to change where a batch norm has one value per channel, which has no variance."""
    try:
        yield
    except ValueError as error:
        if not str(error).startswith(_ONE_VALUE):
            raise
        s, i = cfg.SOLVER, cfg.INPUT
        raise ConfigError(
            "a batch norm got one value per channel and cannot normalise it: each process computes "
            f"one image at a time, so small that a feature map has 1 x 1 px ({error}). Take more "
            f"images at a time (SOLVER.IMS_PER_BATCH is {s.IMS_PER_BATCH}, SOLVER.ACCUMULATE "
            f"{s.ACCUMULATE}) or larger ones (INPUT.MIN_SIZE_TRAIN is "
            f"{', '.join(map(str, i.MIN_SIZE_TRAIN))})"
        ) from error


def without_wrapper(model: nn.Module) -> nn.Module:
    """The model without what several processes wrap around it."""
    return getattr(model, "module", model)
