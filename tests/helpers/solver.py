"""A config of a solver, and a model to optimise."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from onenet.lightning.config import get_cfg


def config(**solver: Any) -> Any:
    cfg = get_cfg()
    for name, value in solver.items():
        node, leaf = cfg.SOLVER, name
        if name.startswith("CLIP_GRADIENTS__"):
            node, leaf = cfg.SOLVER.CLIP_GRADIENTS, name.removeprefix("CLIP_GRADIENTS__")
        assert leaf in node
        node[leaf] = value
    return cfg


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        self.head = nn.Linear(2, 1)


def with_gradients() -> nn.ParameterList:
    """Gradients (3, 4) and (12, 0): norms 5 and 12, together 13; one parameter has none."""
    parameters = nn.ParameterList([nn.Parameter(torch.zeros(2)) for _ in range(3)])
    parameters[0].grad = torch.tensor([3.0, -4.0])
    parameters[1].grad = torch.tensor([12.0, 0.0])
    return parameters
