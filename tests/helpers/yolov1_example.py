"""What the tests of YOLOv1 share."""

from __future__ import annotations

import torch
from torch import Tensor

from onenet.baselines.yolov1 import Cells


def cells(classes: int = 2, grid: int = 2, boxes: int = 2, batch: int = 1) -> Cells:
    """All 0, so that every box is a point in the corner of its cell; with gradients."""

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(batch, grid**2, *shape, requires_grad=True)

    return Cells(zeros(boxes, 4), zeros(boxes), zeros(classes), grid)


def total(found: dict[str, Tensor]) -> Tensor:
    return sum(found.values())
