"""FCOS head (arXiv 1904.01355) with one positive for each target: no centre-ness, no NMS."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onenet.ops.boxes import decode_ltrb, point_grid
from onenet.structures import Predictions

from .base import BoxConv, Head, conv3x3, join_levels, make_tower, per_sample


class Scale(nn.Module):
    """A learned factor, one for each level."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class FCOSHead(Head):
    """Two towers shared by all levels; samples are grid points.

    Args:
        in_channels: C of every feature map.
        strides: of the feature maps, px.
        num_classes: K.
        num_convs, channels, norm: of each tower; ``norm`` is "GN" or "BN".
        prior_prob: see :class:`~onenet.heads.base.Head`.

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
    ) -> None:
        super().__init__(num_classes=num_classes, prior_prob=prior_prob)
        self.strides = tuple(strides)
        self.scales = nn.ModuleList(Scale() for _ in self.strides)
        self.cls_conv_module = make_tower(in_channels, channels, num_convs, norm)
        self.reg_conv_module = make_tower(in_channels, channels, num_convs, norm)
        self.cls_score = conv3x3(channels, num_classes)
        self.ltrb_pred = BoxConv(channels, 4)
        self.reset_parameters(self.cls_score)

    def forward(self, features: list[Tensor]) -> Predictions:
        """Predictions from maps (B, C, H_l, W_l), one for each stride."""
        logits, boxes, samples = [], [], []
        for feature, scale, stride in zip(features, self.scales, self.strides, strict=True):
            class_map = self.cls_score(self.cls_conv_module(feature))
            box_map = scale(self.ltrb_pred(self.reg_conv_module(feature)))
            points = point_grid(*feature.shape[-2:], stride, feature.device)
            logits.append(self.logits(class_map))
            boxes.append(decode_ltrb(points, F.relu(per_sample(box_map, 4).float()) * stride))
            samples.append(points.repeat(1, 2))
        return join_levels(logits, boxes, samples)
