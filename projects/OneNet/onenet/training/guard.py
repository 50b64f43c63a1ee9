"""Steps that leave a model alone where its gradients are NaN or infinite."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer

from .optim import gradient_norm


class Guard:
    """Steps of a fused optimiser that a NaN or infinite gradient keeps from happening.

    Then the weights and the optimiser's state stay as they are, and batch norms get their
    statistics back. :func:`~onenet.training.accumulation.forward_backward` turns such losses into
    such gradients, which all processes share, so all do the same. The device decides; the host does
    not wait for it: once more than ``tolerated`` iterations in a row went wrong nothing changes any
    more, and when the host looks, the model is still the one that the last of them met.

    Args:
        optimizer: fused.
        model: the optimiser's, on its device.
        tolerated: iterations in a row that may go wrong.

    Attributes:
        good: scalar bool on the device, whether the last step took place.
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
        """Note the batch norms' statistics, before the forward pass."""
        self._kept = [_flat(alike) for alike in self._statistics]

    def step(self) -> Tensor:
        """The step after a backward pass, if it may take place.

        Returns:
            Scalar float32: the norm of all gradients before clipping.
        """
        norm = gradient_norm(self.model)
        self.good = norm.isfinite() & (self._in_a_row <= self.tolerated)
        self._in_a_row = torch.where(self.good, 0, self._in_a_row + 1)
        # What a gradient scaler tells fused optimisers, too.
        self.optimizer.found_inf = (~self.good).float()
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
    """The same with a gradient scaler, which waits for the device.

    A scaler looks for its scale by making gradients overflow. As long as it has one to step back
    from, above 1, that is no fault.

    Args:
        scaler: of the optimiser, which is not fused.
    """

    def __init__(
        self, optimizer: Optimizer, model: nn.Module, scaler: torch.amp.GradScaler
    ) -> None:
        super().__init__(optimizer, model)
        self.scaler = scaler

    def step(self) -> Tensor:
        """As of :class:`Guard`; 0 where the scaler stepped back."""
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
