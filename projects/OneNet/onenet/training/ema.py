"""The moving average of a model's weights."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


class ModelEMA:
    """Exponential moving average of a model's weights and of its batch norms' statistics.

    After n updates, the next one keeps min(decay, (1 + n) / (10 + n)) of the average, as
    TensorFlow's ``ExponentialMovingAverage`` does: a short training is averaged over its last
    ninth, a long one over 1 / (1 - decay) iterations. 0.9998 is EfficientDet's decay (arXiv
    1911.09070, section 5.1). torch's ``AveragedModel`` has no such warm-up, and it makes the host
    wait for the device.

    Args:
        model: on its device; the average starts from its weights.
        decay: from 0 to below 1.

    Attributes:
        model: a copy with the averaged weights, in evaluation mode.
        updates: done so far.
    """

    def __init__(self, model: nn.Module, decay: float = 0.9998) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be from 0 to below 1, got {decay}")
        self.decay = decay
        self.updates = 0
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, good: Tensor | None = None) -> None:
        """Average in the weights after another iteration; counters of batch norms are copied.

        Args:
            good: scalar bool; False leaves the average unchanged, see :mod:`onenet.training.guard`.
        """
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averages, currents, counters, counts = [], [], [], []
        for average, current in zip(_tensors(self.model), _tensors(model), strict=True):
            if average.is_floating_point():
                averages.append(average)
                currents.append(current)
            else:
                counters.append(average)
                counts.append(current)
        differences = torch._foreach_sub(currents, averages)
        torch._foreach_mul_(differences, 1 - decay if good is None else (1 - decay) * good)
        torch._foreach_add_(averages, differences)
        if counters:
            torch._foreach_copy_(counters, counts)
        self.updates += 1

    def restart(self, model: nn.Module) -> None:
        """Forget the average and start from the weights of ``model``."""
        self.model.load_state_dict(model.state_dict())
        self.updates = 0

    def state_dict(self) -> dict[str, Any]:
        """The averaged weights, as ``model``, and ``updates``."""
        return {"model": self.model.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state_dict` gave."""
        self.model.load_state_dict(state["model"])
        self.updates = state["updates"]


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    return itertools.chain(model.parameters(), model.buffers())
