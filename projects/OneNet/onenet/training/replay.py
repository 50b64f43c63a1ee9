"""``train_net.py --replay``: a second look at a batch that training stopped on."""

from __future__ import annotations

import importlib
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from onenet.errors import CheckpointError
from onenet.ops.memory_format import memory_format
from onenet.structures import Predictions, Targets

from .accumulation import forward_backward, split
from .dump import Dump
from .history import GRADIENT
from .hooks import set_progress
from .optim import gradient_norm

_NAMED = 5  # of many


Item = tuple[Tensor, Targets, str]
Losses = Callable[[nn.Module, Sequence[Tensor], Sequence[Targets]], dict[str, Tensor]]


@dataclass(frozen=True)
class Rebuilt:
    """What an engine's ``replay.rebuild(config_file, opts)`` builds from a dump's config.

    Attributes:
        model: on its device, untrained.
        losses: from the model, images and targets to the losses.
        parts: number of parts in which the batch is computed.
        iterations: of the whole training.
        precision: of autocast; ``None`` for float32.
    """

    model: nn.Module
    losses: Losses
    parts: int
    iterations: int
    precision: torch.dtype | None


def replay(
    path: str, opts: Sequence[str], *, choose_engine: Callable[[str], tuple[str, str]]
) -> bool:
    """Compute the batch of a dump again, in one process, and print what is not finite.

    Args:
        path: of the dump.
        opts: config values to change, ``KEY VALUE KEY VALUE …``.
        choose_engine: :func:`onenet.cli.choose_engine`, for the engine that wrote the dump.

    Returns:
        Whether a loss or gradient is NaN or infinite again.

    Raises:
        OneNetError: the file is no dump, its engine is missing, or values do not fit.
    """
    dump = Dump.read(Path(path))
    package, _ = choose_engine(dump.engine)
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.yaml"
        config.write_text(dump.config, encoding="utf-8")
        rebuilt = importlib.import_module(f"{package}.replay").rebuild(config, list(opts))
    model = rebuilt.model
    try:
        model.load_state_dict(dump.model)
        batch = split(list(zip(dump.images, dump.targets, dump.files, strict=True)), rebuilt.parts)
    except (RuntimeError, ValueError) as error:
        why = " ".join(str(error).split())  # torch's are several lines
        raise CheckpointError(f"{path} does not fit its config: {why}") from error
    print(
        f"{path}: iteration {dump.iteration}, {len(batch)} x {len(batch[0])} images, "
        f"{dump.precision}, seed {dump.seed}, torch {dump.torch}; it stopped with {dump.what}"
    )
    set_progress(model, (dump.iteration - 1) / rebuilt.iterations)
    for name, value in model.state_dict().items():
        if wrong := _count(value):
            print(f"before it, {wrong} of {value.numel()} values of {name} were not finite")
    values = _compute(rebuilt, batch)
    again = not all(math.isfinite(value) for value in values.values())
    print("it goes wrong again" if again else "everything is finite: it does not go wrong again")
    return again


def _compute(rebuilt: Rebuilt, batch: Sequence[Sequence[Item]]) -> dict[str, float]:
    """The losses and the gradient's norm; prints them, and where values stop being finite."""
    model, dtype = rebuilt.model, rebuilt.precision
    device = next(model.parameters()).device
    autocast = torch.autocast(device.type, dtype, enabled=dtype is not None)
    with autocast:
        model.to(memory_format=memory_format(device)).train()
    found: list[str] = []
    for name, module in model.named_modules():
        module.register_forward_hook(partial(_note_first, name, found))
    part: list[Item] = []
    heads: Iterator[int] = count(1)
    if getattr(model, "criterion", None) is not None:
        model.criterion.register_forward_hook(
            lambda criterion, inputs, _: _print_images(part, next(heads), criterion, inputs)
        )
    if getattr(model, "aux_criterion", None) is not None:
        model.aux_criterion.register_forward_hook(
            lambda criterion, inputs, _: _print_images(part, "aux", criterion, inputs)
        )

    def forward(items: Sequence[Item]) -> dict[str, Tensor]:
        nonlocal heads
        part[:], heads = items, count(1)
        images, targets, _ = zip(*items, strict=True)
        with autocast:
            return rebuilt.losses(model, images, targets)

    counts = [sum(len(targets) for _, targets, _ in items) for items in batch]
    losses = forward_backward(model, batch, counts, forward, Tensor.backward)
    values = {name: loss.item() for name, loss in losses.items()}
    values[GRADIENT] = gradient_norm(model).item()
    for name, value in values.items():
        print(f"{name} = {value}")
    for line in found[:1]:
        print(f"first output that is not finite: {line}")
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    wrong = [name for name, gradient in gradients.items() if _count(gradient)]
    if wrong and not found:  # after an output that is not finite, all gradients are not
        # A backward pass starts at the last ones.
        names = ", ".join(wrong[: -_NAMED - 1 : -1]) + ", …" * (len(wrong) > _NAMED)
        print(f"gradients of {len(wrong)} of {len(gradients)} parameters are not finite: {names}")
    return values


def _note_first(name: str, found: list[str], module: nn.Module, inputs: Any, output: Any) -> None:
    """Forward hook: note a module whose output is not finite, if it is the first one."""
    wrong = 0 if found else sum(map(_count, _tensors(output)))
    if wrong:
        total = sum(tensor.numel() for tensor in _tensors(output))
        given = "not " * any(map(_count, _tensors(inputs)))
        kind = type(module).__name__
        found.append(f"{name} ({kind}), {wrong} of {total} values; its input was {given}finite")


@torch.no_grad()
def _print_images(
    part: Sequence[Item], head: int | str, criterion: nn.Module, inputs: tuple[Any, ...]
) -> None:
    """Print the images whose predictions or losses are not finite.

    Args:
        head: which head made the predictions, counted from 1, or "aux".
        inputs: what the criterion was called with.
    """
    predictions = inputs[0]
    if not isinstance(predictions, Predictions):
        return
    for i, (_, targets, file) in enumerate(part):
        own = slice(i, i + 1)
        one = replace(predictions, logits=predictions.logits[own], boxes=predictions.boxes[own])
        losses = criterion.forward(one, [targets])  # not through this hook
        wrong = {"logits": _count(one.logits), "boxes": _count(one.boxes)}
        told = [f"{count} {name} are not finite" for name, count in wrong.items() if count]
        told += [f"{k} = {v.item()}" for k, v in losses.items() if not v.isfinite()]
        if told:
            which = f", head {head}" if head != 1 else ""
            print(f"{file}{which}: {', '.join(told)}; objects: {len(targets)}")
            for label, box in zip(targets.labels[:_NAMED], targets.boxes, strict=False):
                print(f"  class {label} at {', '.join(f'{side:.1f}' for side in box.tolist())}")


def _tensors(value: Any) -> Iterator[Tensor]:
    """The floating-point tensors in containers and dataclasses."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for below in value:
            yield from _tensors(below)
    elif is_dataclass(value):
        yield from _tensors(list(vars(value).values()))


def _count(tensor: Tensor) -> int:
    return int((~tensor.isfinite()).sum())
