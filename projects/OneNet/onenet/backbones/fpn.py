"""The feature pyramid on a backbone, with Detectron2's parameter names."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from .resnet import STAGES, Shape


class TopBlock(nn.Module):
    """p6 and p7 from res5, as in RetinaNet (arXiv 1708.02002)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.p6 = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)
        self.p7 = nn.Conv2d(out_channels, out_channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        p6 = self.p6(x)
        return p6, self.p7(F.relu(p6))


class FPN(nn.Module):
    """Feature pyramid (arXiv 1612.03144): p3 … p7, or p2 … p6 with ``pooled_top``.

    Args:
        bottom_up: gives ``in_features`` and res5, and has their ``shapes``.
        in_features: stages with lateral connections: res5, and those before it without a gap.
        out_channels: of every map.
        pooled_top: above p5 comes p6, every other point of it, as for Faster R-CNN; otherwise p6
            and p7, made of res5 by convolutions.

    Raises:
        ValueError: other ``in_features``, or ones that ``bottom_up`` does not give.
    """

    def __init__(
        self,
        bottom_up: nn.Module,
        *,
        in_features: Sequence[str],
        out_channels: int = 256,
        pooled_top: bool = False,
    ) -> None:
        super().__init__()
        missing = [name for name in (*in_features, "res5") if name not in bottom_up.shapes]
        if missing:
            raise ValueError(
                f"the feature pyramid (MODEL.FPN.IN_FEATURES) needs {', '.join(missing)}, but the "
                f"backbone makes {', '.join(bottom_up.shapes)}"
            )
        self.in_features = tuple(in_features)
        if not in_features or self.in_features != STAGES[-len(in_features) :]:
            raise ValueError(
                "MODEL.FPN.IN_FEATURES must be neighbours up to res5, finest first, "
                f"got {list(in_features)}"
            )
        self.levels = [int(name.removeprefix("res")) for name in in_features]
        self.shapes = {}
        for name, level in zip(in_features, self.levels, strict=True):
            shape = bottom_up.shapes[name]
            lateral = nn.Conv2d(shape.channels, out_channels, kernel_size=1)
            output = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1)
            self.add_module(f"fpn_lateral{level}", lateral)
            self.add_module(f"fpn_output{level}", output)
            self.shapes[f"p{level}"] = Shape(out_channels, shape.stride)
        last = self.levels[-1]
        coarsest = bottom_up.shapes[in_features[-1]].stride
        self.top_block = None
        if not pooled_top:
            self.top_block = TopBlock(bottom_up.shapes["res5"].channels, out_channels)
        for i in (1,) if pooled_top else (1, 2):
            self.shapes[f"p{last + i}"] = Shape(out_channels, coarsest * 2**i)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                nn.init.zeros_(module.bias)
        # Added last: it has initialised itself.
        self.bottom_up = bottom_up

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Feature maps by name from images (B, 3, H, W), sides a multiple of 32."""
        bottom_up = self.bottom_up(x)
        maps = []
        above: Tensor | None = None
        for name, level in zip(reversed(self.in_features), reversed(self.levels), strict=True):
            lateral = getattr(self, f"fpn_lateral{level}")(bottom_up[name])
            if above is not None:
                lateral = lateral + F.interpolate(above, scale_factor=2.0, mode="nearest")
            maps.insert(0, getattr(self, f"fpn_output{level}")(lateral))
            above = lateral
        if self.top_block is None:
            maps.append(maps[-1][..., ::2, ::2])
        else:
            maps.extend(self.top_block(bottom_up["res5"]))
        return dict(zip(self.shapes, maps, strict=True))
