"""What a run needs of the checkpoint that it resumes from; the same for both engines."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from onenet.errors import CheckpointError

from .changes import compare, compare_data, flat, refusal, saved_config, without_resuming

logger = logging.getLogger(__name__)


def check_resumable(
    content: Mapping[str, Any],
    path: Path,
    facts: Mapping[str, Any],
    get_cfg: Callable[[], Any],
    load_cfg: Callable[..., Any],
    *,
    detectron2: bool,
) -> None:
    """Refuse a checkpoint of a run that this one cannot go on with, and log what changes.

    Args:
        content: of the checkpoint.
        path: of the checkpoint, for messages.
        facts: what this run's checkpoints say about it: ``class_names``, ``images``, ``config``.
        get_cfg, load_cfg: of this run's engine.
        detectron2: whether that is Detectron2's, whose order of images starts again.

    Raises:
        CheckpointError: it is the other engine's, or of other data or settings; says which.
    """
    check_engine(content, path, detectron2=detectron2)
    done = iterations_of(content, path)
    compare_data(content, path, facts)
    if (saved := saved_config(content, path, load_cfg)) is not None:
        old = {**flat(get_cfg()), **saved}
        compare(old, facts["config"], path=path, done=done, stream=not detectron2)


def restore(parts: Mapping[str, Any], content: Mapping[str, Any], path: Path) -> int:
    """Load a checkpoint into the parts of a run.

    An optimiser and its schedule keep the settings that they were built with, such as learning rate
    and weight decay, which may differ from those of the checkpoint's run.

    Args:
        parts: each with a ``load_state_dict``, by its name in the checkpoint; ``ema`` where the
            run averages its weights.
        content: of the checkpoint.
        path: of the checkpoint, for messages.

    Returns:
        How many iterations are done.

    Raises:
        CheckpointError: the checkpoint belongs to another config.
    """
    averages = "ema" in parts
    if averages != ("ema" in content):
        raise CheckpointError(
            f"{path} cannot be resumed with MODEL_EMA.ENABLED {averages}; its run had "
            f"{not averages}. Set it so, or {without_resuming(path)}"
        )
    try:
        for name, part in parts.items():
            state = content[name]
            if isinstance(part, Optimizer):
                state = with_settings(part, state)
            with own_rates(part) if isinstance(part, LRScheduler) else nullcontext():
                part.load_state_dict(state)
            if isinstance(part, Optimizer):
                start_momentum(part)
        iterations = iterations_of(content, path)
    except (KeyError, RuntimeError, ValueError) as error:
        raise refusal(path, str(error)) from error
    logger.info("Resumed from %s: %d iterations are done", path, iterations)
    return iterations


def check_engine(content: Mapping[str, Any], path: Path, *, detectron2: bool) -> None:
    """Raise ``CheckpointError`` unless a checkpoint is one of this engine's.

    Args:
        detectron2: this engine is Detectron2's.
    """
    if detectron2 and "trainer" not in content:
        raise CheckpointError(
            f"{path} holds no state of Detectron2's trainer. Resume with the engine that wrote it "
            f"(--engine lightning), or {without_resuming(path)}"
        )
    if not detectron2 and "trainer" in content:
        raise CheckpointError(
            f"{path} is a checkpoint of Detectron2's trainer. Resume with the engine that wrote it "
            f"(--engine detectron2), or {without_resuming(path)}"
        )


def iterations_of(content: Mapping[str, Any], path: Path) -> int:
    """How many iterations are done.

    Raises:
        CheckpointError: the checkpoint does not say.
    """
    last = content.get("iteration")
    if type(last) is not int:
        raise CheckpointError(
            f"{path} holds weights, but not the state of a training: {without_resuming(path)}"
        )
    return last + 1


def with_settings(optimizer: Optimizer, state: Mapping[str, Any]) -> dict[str, Any]:
    """A state of an optimiser with the settings of this one.

    Before it is loaded: where it puts its values depends on them.
    """
    groups = [
        {**own, "params": saved["params"]}
        for own, saved in zip(optimizer.param_groups, state["param_groups"], strict=True)
    ]
    return {**state, "param_groups": groups}


def start_momentum(optimizer: Optimizer) -> None:
    """Give SGD the momentum that the state of a run without lacks.

    The fused optimiser would leave it uninitialised if its first step is skipped.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"] if group.get("momentum") else ():
            state = optimizer.state[parameter]
            if state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(parameter)


@contextmanager
def own_rates(scheduler: LRScheduler) -> Iterator[None]:
    """Keep a schedule's own base rates over a state that is loaded within, which brings the
    iteration."""
    base = list(scheduler.base_lrs)
    yield
    scheduler.base_lrs = base
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of get_lr() outside of step()
        rates = scheduler.get_lr()
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler._last_lr = list(rates)
