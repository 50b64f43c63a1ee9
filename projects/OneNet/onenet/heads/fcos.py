"""FCOS head (arXiv 1904.01355) with one positive for each target: no centre-ness, no NMS."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onenet.ops.boxes import decode_ltrb, point_grid
from onenet.structures import Predictions

from .base import BoxConv, conv3x3, join_levels, make_tower, per_sample
from .towers import TowerHead, Towers


class Scale(nn.Module):
    """A learned factor, one for each level."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class FCOSHead(TowerHead):
    """Two towers shared by all levels; samples are grid points.

    Args:
        in_channels: C of every feature map.
        strides: of the feature maps, px.
        num_classes: K.
        num_convs, channels, norm: of each tower; ``norm`` is "GN" or "BN".
        prior_prob, init: see :class:`~onenet.heads.base.Head`.

    Example:
        >>> head = FCOSHead(in_channels=32, strides=[8, 16], num_classes=3, channels=32)
        >>> head([torch.rand(1, 32, 8, 8), torch.rand(1, 32, 4, 4)]).logits.shape
        torch.Size([1, 80, 3])
    """

    def __init__(
        self,
        *,
        in_channels: int,
        strides: Sequence[int],
        num_classes: int,
        num_convs: int = 4,
        channels: int = 256,
        norm: str = "GN",
        prior_prob: float = 0.01,
        init: str = "xavier",
    ) -> None:
        super().__init__(num_classes=num_classes, prior_prob=prior_prob, init=init)
        self.strides = tuple(strides)
        self.scales = nn.ModuleList(Scale() for _ in self.strides)
        self.cls_conv_module = make_tower(in_channels, channels, num_convs, norm)
        self.reg_conv_module = make_tower(in_channels, channels, num_convs, norm)
        self.cls_score = conv3x3(channels, num_classes)
        self.ltrb_pred = BoxConv(channels, 4)
        self.reset_parameters(self.cls_score)

    @property
    def box_layer(self) -> nn.Conv2d:
        return self.ltrb_pred

    def predict(self, towers: Towers, class_layer: nn.Module, box_layer: nn.Module) -> Predictions:
        """See :class:`~onenet.heads.towers.TowerHead`."""
        logits, boxes, samples = [], [], []
        for (x, box_x), scale, stride in zip(towers, self.scales, self.strides, strict=True):
            class_map, box_map = class_layer(x), scale(box_layer(box_x))
            points = point_grid(*x.shape[-2:], stride, x.device)
            logits.append(self.logits(class_map))
            boxes.append(decode_ltrb(points, F.relu(per_sample(box_map, 4).float()) * stride))
            samples.append(points.repeat(1, 2))
        return join_levels(logits, boxes, samples)
