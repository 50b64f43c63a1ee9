"""Optimiser steps that leave the model unchanged if a gradient is NaN or infinite."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer

from .optim import gradient_norm


class Guard:
    """Steps of an optimiser, skipped if a gradient is NaN or infinite.

    A skipped step leaves the weights and the optimiser's state unchanged and restores the
    statistics of batch norms. :func:`~onenet.training.accumulation.forward_backward` turns losses
    that are not finite into such gradients, which all processes share, so all skip the same steps.

    With a fused optimiser the device decides, and the host does not wait for it. After more than
    ``tolerated`` bad iterations in a row all further steps are skipped, so when the host reads the
    losses, the model is still what the last of these iterations started from.

    Args:
        optimizer: fused, or the host waits for the device in every step.
        model: the optimiser's, on its device.
        tolerated: how many iterations in a row may go wrong.

    Attributes:
        good: scalar bool on the device, whether the last step changed the weights.
    """

    def __init__(self, optimizer: Optimizer, model: nn.Module, tolerated: int = 0) -> None:
        self.optimizer, self.model, self.tolerated = optimizer, model, tolerated
        device = next(model.parameters()).device
        self.good = torch.ones((), dtype=torch.bool, device=device)
        self._in_a_row = torch.zeros((), device=device)
        norms = [module for module in model.modules() if isinstance(module, _NormBase)]
        statistics = [buffer for norm in norms for buffer in norm.buffers(recurse=False)]
        self._statistics = [
            [s for s in statistics if s.dtype == dtype] for dtype in {s.dtype for s in statistics}
        ]
        self._kept: list[Tensor] = []

    @torch.no_grad()
    def keep(self) -> None:
        """Keep a copy of the batch norms' statistics; call this before the forward pass."""
        self._kept = [_flat(alike) for alike in self._statistics]

    def step(self) -> Tensor:
        """Update the weights after a backward pass, unless a gradient is not finite.

        Returns:
            Scalar float32: the norm of all gradients before clipping.
        """
        norm = gradient_norm(self.model)
        self.good = norm.isfinite() & (self._in_a_row <= self.tolerated)
        self._in_a_row = torch.where(self.good, 0, self._in_a_row + 1)
        if self.optimizer.defaults["fused"]:
            # The attribute through which a gradient scaler makes such optimisers skip a step.
            self.optimizer.found_inf = (~self.good).float()
            self.optimizer.step()
        elif self.good:
            self.optimizer.step()
        self._put_back()
        return norm

    @torch.no_grad()
    def _put_back(self) -> None:
        for alike, kept in zip(self._statistics, self._kept, strict=True):
            flat = torch.where(self.good, _flat(alike), kept)
            parts = flat.split([s.numel() for s in alike])
            torch._foreach_copy_(alike, [p.view_as(s) for p, s in zip(parts, alike, strict=True)])


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


class ScaledGuard(Guard):
    """The same with a gradient scaler, which makes the host wait for the device.

    A scaler finds its scale by letting gradients overflow, so an overflow is not an error while the
    scale is above 1.

    Args:
        scaler: of an optimiser that is not fused.
    """

    def __init__(
        self, optimizer: Optimizer, model: nn.Module, scaler: torch.amp.GradScaler
    ) -> None:
        super().__init__(optimizer, model)
        self.scaler = scaler

    def step(self) -> Tensor:
        """See :class:`Guard`; returns 0 if the scaler has lowered its scale."""
        self.scaler.unscale_(self.optimizer)
        norm = gradient_norm(self.model)
        self.good = norm.isfinite()
        if self.good:
            self.scaler.step(self.optimizer)
        scale = self.scaler.get_scale()
        self.scaler.update()
        self._put_back()
        stepped_back = self.scaler.get_scale() < scale and scale > 1
        return torch.zeros_like(norm) if stepped_back else norm
