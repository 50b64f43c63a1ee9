"""Models that are saved and loaded in no time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from onenet.backbones.fpn import FPN
from onenet.backbones.resnet import ResNet
from onenet.checkpoints.weights import load_weights
from onenet.errors import CheckpointError
from onenet.heads.retinanet import RetinaNetHead


class Detector(nn.Module):
    """ResNet-18, plain or with a pyramid, and a small RetinaNet head."""

    def __init__(self, fpn: bool = False, classes: int = 3, norm: str = "BN") -> None:
        super().__init__()
        self.backbone = ResNet(depth=18, norm=norm)
        if fpn:
            self.backbone = FPN(self.backbone, in_features=["res5"], out_channels=4)
        self.head = RetinaNetHead(
            in_channels=4,
            strides=[8],
            num_classes=classes,
            anchor_sizes=[[8]],
            num_convs=1,
            channels=4,
        )


class Small(nn.Module):
    """The least that has a backbone and a class layer."""

    def __init__(self, classes: int = 3, width: int = 2) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(1, width, 1), nn.BatchNorm2d(width))
        self.head = nn.ModuleDict({"cls_score": nn.Conv2d(width, classes, 1)})


def saved(path: Path, content) -> str:
    torch.save(content, path)
    return str(path)


def same(model: nn.Module, state: dict) -> bool:
    own = model.state_dict()
    return all(torch.equal(own[name], value) for name, value in state.items())


def refused(model: nn.Module, weights: str, **options) -> str:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        load_weights(model, weights, **options)
    assert same(model, before), "a refused checkpoint must change nothing"
    return str(error.value)


def content(number: float) -> dict[str, Any]:
    """A small checkpoint that holds a number."""
    return {"model": {"a": torch.full((1000,), float(number))}}
