"""Small heads, and maps for them."""

from __future__ import annotations

import torch

from onenet.heads.base import Head
from onenet.heads.deconv import DeconvHead
from onenet.heads.fcos import FCOSHead
from onenet.heads.retinanet import RetinaNetHead

STRIDES = (8, 16)


SIZES = [[16, 20], [32, 40]]


def centernet(**changes) -> DeconvHead:
    settings = {
        "in_channels": [4, 6, 8, 10],
        "stride": 4,
        "num_classes": 3,
        "deconv_channels": [10, 8, 6, 4],
        "dcn": False,
    }
    return DeconvHead(**(settings | changes)).eval()


def fcos(**changes) -> FCOSHead:
    settings = {"in_channels": 5, "strides": STRIDES, "num_classes": 3, "num_convs": 1}
    return FCOSHead(**(settings | {"channels": 32} | changes)).eval()


def retinanet(**changes) -> RetinaNetHead:
    settings = {"in_channels": 5, "strides": STRIDES, "num_classes": 3, "num_convs": 1}
    more = {"channels": 8, "anchor_sizes": SIZES, "aspect_ratios": (0.5, 1.0, 2.0)}
    return RetinaNetHead(**(settings | more | changes)).eval()


def maps_for(head: Head, batch: int = 2) -> list[torch.Tensor]:
    """Maps of images 64 wide and 32 high."""
    generator = torch.Generator().manual_seed(0)
    if isinstance(head, DeconvHead):
        sizes = [(c, s) for c, s in zip([4, 6, 8, 10], [4, 8, 16, 32], strict=True)]
    else:
        sizes = [(5, stride) for stride in STRIDES]
    return [torch.randn(batch, c, 32 // s, 64 // s, generator=generator) for c, s in sizes]
