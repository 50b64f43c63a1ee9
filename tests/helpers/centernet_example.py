"""Targets and maps for the tests of CenterNet."""

from __future__ import annotations

import torch

from onenet.baselines.centernet import CenterMaps
from onenet.structures import Targets


def targets(*boxes, labels=None, size=(32, 32)):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    labels = [0] * len(boxes) if labels is None else labels
    return Targets(boxes, torch.tensor(labels, dtype=torch.int64), size)


def maps(classes=2, height=8, width=8, batch=1, stride=4):
    """All zero, with gradients."""

    def zeros(channels):
        return torch.zeros(batch, channels, height, width, requires_grad=True)

    return CenterMaps(zeros(classes), zeros(2), zeros(2), stride)
