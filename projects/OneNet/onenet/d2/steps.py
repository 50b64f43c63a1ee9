"""The core's step within Detectron2's trainers, in float32 and in mixed precision."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import AMPTrainer, SimpleTrainer
from torch import Tensor

from onenet.structures import send
from onenet.training.dump import dump_batch
from onenet.training.guard import Guard, ScaledGuard
from onenet.training.history import GRADIENT, History
from onenet.training.step import train_step, without_wrapper

from .meta_arch import name_of, to_targets


class _Guarded:
    """Mixed into one of Detectron2's trainers, runs the core's step in place of its own.

    Attributes:
        cfg: of the run.
        guard: of the optimiser.
        values: of the last step, see :func:`~onenet.training.step.train_step`.
        history: of the iterations since the start.
    """

    cfg: Any
    guard: Guard
    values: dict[str, Tensor]
    history: History | None = None

    def run_step(self) -> None:
        """One iteration.

        Raises:
            NonFiniteError: see :meth:`History.read`.
            OutOfMemoryError: names the settings that need less.
        """
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        device = next(self.model.parameters()).device
        if self.history is None:
            without_wrapper(self.model).stop_at_nonfinite = False
            self.history = History(device, self.iter, tolerated=self.cfg.SOLVER.SKIP_NONFINITE)
        self.values = train_step(
            self.cfg,
            self.model,
            self.guard,
            data,
            count=lambda inputs: len(inputs.get("instances", ())),
            forward=lambda part: self.forward(_sent(part, device)),
            backward=self.backward,
        )
        self.history.dump = partial(self._dump, data)
        self.history.add(self.values, list(map(name_of, data)))
        if self.history.read():
            losses = {name: value for name, value in self.values.items() if name != GRADIENT}
            self._write_metrics(losses, data_time)

    def forward(self, data: list[dict[str, Any]]) -> dict[str, Tensor]:
        return self.model(data)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def _dump(self, data: list[dict[str, Any]], iteration: int, what: str) -> Path:
        return dump_batch(
            Path(self.cfg.OUTPUT_DIR),
            without_wrapper(self.model),
            [(inputs["image"], to_targets(inputs), name_of(inputs)) for inputs in data],
            iteration=iteration,
            what=what,
            engine="detectron2",
            config=self.cfg.dump(),
            seed=self.cfg.SEED,
            precision="float16" if isinstance(self, AMPTrainer) else "float32",
        )


class GuardedTrainer(_Guarded, SimpleTrainer):
    """In float32."""


class GuardedAMPTrainer(_Guarded, AMPTrainer):
    """In mixed precision, with a gradient scaler."""

    def forward(self, data: list[dict[str, Any]]) -> dict[str, Tensor]:
        device = next(self.model.parameters()).device
        with torch.autocast(device.type, self.precision):
            return self.model(data)

    def backward(self, loss: Tensor) -> None:
        self.grad_scaler.scale(loss).backward()


def _sent(data: Sequence[dict[str, Any]], device: torch.device) -> list[dict[str, Any]]:
    """Inputs with their images on the device."""
    # Several processes' wrapper would send each image with a copy that blocks.
    return [{**inputs, "image": send(inputs["image"], device)} for inputs in data]


def guarded(trainer: SimpleTrainer, cfg: Any) -> SimpleTrainer:
    """A trainer like the given one, with the keys of ``SOLVER`` that Detectron2 does not have.

    Its optimiser must be fused unless there is a gradient scaler.
    """
    given = trainer.model, trainer.data_loader, trainer.optimizer
    if isinstance(trainer, AMPTrainer):
        scaler = trainer.grad_scaler
        new: Any = GuardedAMPTrainer(*given, grad_scaler=scaler, precision=trainer.precision)
        new.guard = ScaledGuard(trainer.optimizer, trainer.model, scaler)
    else:
        new = GuardedTrainer(*given)
        new.guard = Guard(trainer.optimizer, trainer.model, cfg.SOLVER.SKIP_NONFINITE)
    new.cfg, new.values = cfg, {}
    return new
