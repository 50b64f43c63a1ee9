"""MobileNetV3 (arXiv 1905.02244) without its classifier, made of torchvision's layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

import torchvision.models.mobilenetv3 as tv
from torch import Tensor, nn

from .resnet import NORMS, STAGES, Shape, freeze

SIZES = {"small": tv.mobilenet_v3_small, "large": tv.mobilenet_v3_large}


class MobileNetV3(nn.Module):
    """MobileNetV3 up to its last block; the widening convolution behind it is not built.

    Parameters have torchvision's names, ``features.0.0.weight`` …, so its ImageNet files fit.

    Args:
        size: "small" or "large".
        width: factor of every layer's channels; ImageNet weights exist for 1.0.
        norm: "BN", "FrozenBN" or "SyncBN".
        freeze_at: 0 freezes nothing, 1 the layers of stride 2, 2 those and res2, and so on; frozen
            batch norms become FrozenBN.

    Raises:
        ValueError: an unknown size or norm, a width that is not above 0, or no such stage to
            freeze.
    """

    def __init__(
        self, *, size: str = "large", width: float = 1.0, norm: str = "BN", freeze_at: int = 0
    ) -> None:
        super().__init__()
        if size not in SIZES:
            raise ValueError(
                f"MODEL.MOBILENETV3.SIZE must be one of {', '.join(SIZES)}, got {size!r}"
            )
        if norm not in NORMS:
            raise ValueError(
                f"MODEL.MOBILENETV3.NORM must be one of {', '.join(NORMS)}, got {norm!r}"
            )
        if not width > 0:
            raise ValueError(f"MODEL.MOBILENETV3.WIDTH must be above 0, got {width}")
        if not 0 <= freeze_at <= 5:
            raise ValueError(f"MODEL.BACKBONE.FREEZE_AT must be from 0 to 5, got {freeze_at}")
        # torchvision's own values for this network.
        options = {"eps": 0.001} | ({} if norm == "FrozenBN" else {"momentum": 0.01})
        source = SIZES[size](
            weights=None, width_mult=width, norm_layer=partial(NORMS[norm], **options)
        )
        self.features = source.features[:-1]
        self.shapes: dict[str, Shape] = {}
        # By number of a layer, the name of the map behind it.
        self._maps: dict[int, str] = {}
        stride, frozen = 1, 2**freeze_at
        for i, layer in enumerate(self.features):
            convs = [module for module in layer.modules() if isinstance(module, nn.Conv2d)]
            stride *= math.prod(conv.stride[0] for conv in convs)
            if stride >= 4:
                name = STAGES[int(math.log2(stride)) - 2]
                self.shapes[name] = Shape(convs[-1].out_channels, stride)
                self._maps = {n: other for n, other in self._maps.items() if other != name}
                self._maps[i] = name
            if freeze_at and stride <= frozen:
                freeze(layer)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """``res2`` … ``res5`` from images (B, 3, H, W)."""
        found = {}
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in self._maps:
                found[self._maps[i]] = x
        return found

    def from_classifier(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This backbone's part of the parameters of torchvision's classifier."""
        own = self.state_dict()
        return {name: value for name, value in state.items() if name in own}
