"""Detectron2's training steps on a batch in parts, for ``SOLVER.ACCUMULATE``."""

from __future__ import annotations

import time
from typing import Any

import torch
from detectron2.engine import AMPTrainer, SimpleTrainer
from torch import Tensor

from ..accumulation import forward_backward, split


class _InParts:
    """Mixed into one of Detectron2's trainers, computes each batch in ``parts`` parts."""

    parts: int

    def run_step(self) -> None:
        """One iteration."""
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        parts = split(data, self.parts)
        self.optimizer.zero_grad()
        losses = forward_backward(
            self.model,
            parts,
            [sum(len(inputs.get("instances", ())) for inputs in part) for part in parts],
            forward=self.forward,
            backward=self.backward,
        )
        self.after_backward()
        self._write_metrics(losses, data_time)
        self.step()

    def forward(self, data: list[dict[str, Any]]) -> dict[str, Tensor]:
        return self.model(data)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self) -> None:
        self.optimizer.step()


class SimpleTrainerInParts(_InParts, SimpleTrainer):
    """In float32."""


class AMPTrainerInParts(_InParts, AMPTrainer):
    """In mixed precision, with a gradient scaler."""

    def forward(self, data: list[dict[str, Any]]) -> dict[str, Tensor]:
        device = next(self.model.parameters()).device
        with torch.autocast(device.type, self.precision):
            return self.model(data)

    def backward(self, loss: Tensor) -> None:
        self.grad_scaler.scale(loss).backward()

    def step(self) -> None:
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()


def in_parts(trainer: SimpleTrainer, parts: int) -> SimpleTrainer:
    """A trainer like the one given that computes each batch in parts."""
    given = trainer.model, trainer.data_loader, trainer.optimizer
    if isinstance(trainer, AMPTrainer):
        new: Any = AMPTrainerInParts(
            *given, grad_scaler=trainer.grad_scaler, precision=trainer.precision
        )
    else:
        new = SimpleTrainerInParts(*given)
    new.parts = parts
    return new
