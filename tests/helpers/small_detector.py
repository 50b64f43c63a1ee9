"""OneNet around a tiny backbone, with images and targets for it."""

from __future__ import annotations

import torch
from torch import nn

from onenet import Criterion, MinCostMatcher, OneNet, Targets
from onenet.assignment.costs import PredictedLocation
from onenet.heads.deconv import DeconvHead

MEAN, STD = (10.0, 20.0, 30.0), (1.0, 2.0, 4.0)


class Backbone(nn.Module):
    """Maps of stride 4, 8, 16 and 32; sees no further than its cells."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, kernel_size=4, stride=4)

    def forward(self, x):
        fine = self.conv(x).relu()
        return {f"res{i + 2}": nn.functional.avg_pool2d(fine, 2**i) for i in range(4)}


def model(**changes) -> OneNet:
    torch.manual_seed(0)
    head = DeconvHead(
        in_channels=[4] * 4, stride=4, num_classes=2, deconv_channels=[4] * 4, dcn=False
    )
    # Boxes of some size, so that all sides train.
    nn.init.constant_(head.ltrb_pred.bias, 4.0)
    head.ltrb_pred.weight.data *= 0.05
    settings = {
        "backbone": Backbone(),
        "head": head,
        "criterion": Criterion(matcher=MinCostMatcher(location=PredictedLocation())),
        "in_features": ["res2", "res3", "res4", "res5"],
        "pixel_mean": MEAN,
        "pixel_std": STD,
    }
    return OneNet(**(settings | changes))


def image(height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)


def targets(*boxes, size=(32, 40)):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Targets(boxes, torch.zeros(len(boxes), dtype=torch.int64), size)
