"""Detectron2's training steps, in parts, and guarded against NaN and infinity."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import AMPTrainer, SimpleTrainer
from torch import Tensor, nn

from onenet.training.accumulation import forward_backward, split
from onenet.training.dump import dump_batch
from onenet.training.guard import Guard, ScaledGuard
from onenet.training.history import GRADIENT, History
from onenet.training.oom import memory_errors, training_advice

from .meta_arch import name_of, to_targets


class _Guarded:
    """Mixed into one of Detectron2's trainers, honours ``SOLVER.ACCUMULATE`` and more.

    Attributes:
        cfg: of the run.
        guard: of the optimiser.
        history: of the iterations since the start.
    """

    cfg: Any
    guard: Guard
    history: History | None = None

    def run_step(self) -> None:
        """One iteration.

        Raises:
            NonFiniteError: of :meth:`History.read`.
            OutOfMemoryError: names the settings that need less.
        """
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        if self.history is None:
            self.bare_model.stop_at_nonfinite = False
            device = next(self.model.parameters()).device
            self.history = History(device, self.iter, tolerated=self.cfg.SOLVER.SKIP_NONFINITE)
        parts = split(data, self.cfg.SOLVER.ACCUMULATE)
        with memory_errors(self.bare_model, lambda: training_advice(self.cfg)):
            self.guard.keep()
            self.optimizer.zero_grad()
            losses = forward_backward(
                self.model,
                parts,
                [sum(len(inputs.get("instances", ())) for inputs in part) for part in parts],
                forward=self.forward,
                backward=self.backward,
            )
            self.after_backward()
            values = {**losses, GRADIENT: self.guard.step()}
        self.history.dump = partial(self._dump, data)
        self.history.add(values, list(map(name_of, data)))
        if self.history.read():
            self._write_metrics(losses, data_time)

    @property
    def bare_model(self) -> nn.Module:
        """The model without what several processes wrap around it."""
        return getattr(self.model, "module", self.model)

    def forward(self, data: list[dict[str, Any]]) -> dict[str, Tensor]:
        return self.model(data)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def _dump(self, data: list[dict[str, Any]], iteration: int, what: str) -> Path:
        return dump_batch(
            Path(self.cfg.OUTPUT_DIR),
            self.bare_model,
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


def guarded(trainer: SimpleTrainer, cfg: Any) -> SimpleTrainer:
    """A trainer like the one given, with the keys of ``SOLVER`` that Detectron2 has not.

    Its optimiser must be fused, unless there is a gradient scaler.
    """
    given = trainer.model, trainer.data_loader, trainer.optimizer
    if isinstance(trainer, AMPTrainer):
        scaler = trainer.grad_scaler
        new: Any = GuardedAMPTrainer(*given, grad_scaler=scaler, precision=trainer.precision)
        new.guard = ScaledGuard(trainer.optimizer, trainer.model, scaler)
    else:
        new = GuardedTrainer(*given)
        new.guard = Guard(trainer.optimizer, trainer.model, cfg.SOLVER.SKIP_NONFINITE)
    new.cfg = cfg
    return new
