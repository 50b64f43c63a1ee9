"""Losses and gradients that turn NaN, and when they are read."""

from __future__ import annotations

import math
from typing import Any

import torch

from onenet.training.history import History

CPU = torch.device("cpu")


def values(*numbers: float) -> dict[str, torch.Tensor]:
    return dict(zip(("loss_ce", "loss_bbox"), map(torch.tensor, numbers), strict=True))


class Later(History):
    """As on a device that the host does not wait for."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.immediate = False


def nan_loss(losses: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**losses, "loss_giou": losses["loss_giou"] * math.nan}


def nan_gradient(losses: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    losses["loss_giou"].register_hook(lambda gradient: gradient * math.nan)
    return losses
