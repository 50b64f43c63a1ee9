"""The losses of training on a test set (``TEST.LOSS``), which leave the training as it is."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from onenet.assignment.criterion import alone

from .best import LOSS
from .distributed import gather
from .history import COST
from .hooks import set_progress

logger = logging.getLogger(__name__)
TOTAL = "total_loss"


def mean_losses(
    model: nn.Module,
    items: Iterable[Any],
    forward: Callable[[Any], Mapping[str, Tensor]],
    *,
    progress: float,
) -> dict[str, float]:
    """The mean over images of the losses that a batch of this image alone has, in float32.

    All processes call this, each with its share of the images. The mean depends neither on their
    number nor on any batch size: each image counts once, and sums are exact.

    Args:
        model: its modes, statistics, gradients and the state of every random generator are
            afterwards as before.
        items: one for each image.
        forward: from one of the items to the model's losses.
        progress: how much of the training is done, see ``Criterion.progress``.

    Returns:
        ``val_total_loss``, then ``val_loss_ce`` …, the same on all processes; empty without images.
    """
    shares = gather(_measured(model, items, forward, progress))
    names = next((share[0] for share in shares if share[0]), [])
    images = [row for share in shares for row in share[1]]
    if not images:
        return {}
    means = [_exact_sum(column) / len(images) for column in zip(*images, strict=True)]
    return dict(zip(_titles(names), [sum(means), *means], strict=True))


def loss_names(
    model: nn.Module, item: Any, forward: Callable[[Any], Mapping[str, Tensor]]
) -> list[str]:
    """The names that :func:`mean_losses` gives, from one image, on this process alone."""
    return _titles(_measured(model, [item], forward, 0.0)[0])


def _titles(names: list[str]) -> list[str]:
    return [LOSS + name for name in (TOTAL, *names)]


def _measured(
    model: nn.Module,
    items: Iterable[Any],
    forward: Callable[[Any], Mapping[str, Tensor]],
    progress: float,
) -> tuple[list[str], list[list[float]]]:
    """The names of the losses, and their values for each image."""
    names: list[str] = []
    rows: list[Tensor] = []
    with _measuring(model, progress):
        for item in items:
            losses = {k: v for k, v in forward(item).items() if not k.startswith(COST)}
            names = list(losses)
            rows.append(torch.stack(list(losses.values())))
    return names, torch.stack(rows).double().tolist() if rows else []


def _exact_sum(values: Iterable[float]) -> float:
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):  # infinities of both signs
        return math.nan


def log_losses(name: str, losses: Mapping[str, float]) -> None:
    """Log what :func:`mean_losses` gave for a data set.

    Args:
        name: of the data set.
    """
    if losses:
        terms = "  ".join(f"{key} {value:.4f}" for key, value in losses.items())
        logger.info("%s: %s", name, terms)
    else:
        logger.warning("%s has no objects, so TEST.LOSS has nothing to measure", name)


@contextmanager
def _measuring(model: nn.Module, progress: float) -> Iterator[None]:
    """Make a model compute losses without learning, and undo it.

    The backbone, norms and dropout are as in evaluation; the rest needs training mode for losses.
    """
    modes = {module: module.training for module in model.modules()}
    devices = {parameter.device for parameter in model.parameters()}
    cuda = [device for device in devices if device.type == "cuda"]
    numbers, arrays = random.getstate(), np.random.get_state()
    still = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)
    try:
        set_progress(model, progress)
        for name, module in model.named_modules():
            frozen = name.partition(".")[0] == "backbone" or isinstance(module, still)
            module.training = not frozen
        with torch.no_grad(), torch.random.fork_rng(cuda), alone():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        random.setstate(numbers)
        np.random.set_state(arrays)
