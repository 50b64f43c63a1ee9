"""ResNet, made of torchvision's layers under Detectron2's names.

Detectron2 puts a convolution's normalisation below it (``conv1.norm``) and calls the stages
``stem``, ``res2`` … ``res5``. With the same names, checkpoints of both engines and of the original
load strictly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch.nn.functional as F
import torchvision.models.resnet as tv
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from onenet.ops.convolution import conv_relu

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "BN": nn.BatchNorm2d,
    "FrozenBN": FrozenBatchNorm2d,
    "SyncBN": nn.SyncBatchNorm,
}
_TORCHVISION = {18: tv.resnet18, 34: tv.resnet34, 50: tv.resnet50, 101: tv.resnet101}
STAGES = ("res2", "res3", "res4", "res5")


class Shape(NamedTuple):
    """Channels and stride (px) of a feature map."""

    channels: int
    stride: int


class ConvNorm(nn.Conv2d):
    """A convolution with its normalisation, taken over from a torchvision model."""

    def __init__(self, conv: nn.Conv2d, norm: nn.Module, stride: tuple[int, ...]) -> None:
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            stride=stride,
            padding=conv.padding,
            bias=False,
        )
        self.weight = conv.weight
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        if not isinstance(norm, FrozenBatchNorm2d):
            return norm(super().forward(x))
        # Scaled weights spare two passes over the map, which would widen bfloat16 to float32.
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        bias = norm.bias - norm.running_mean * scale
        return self._conv_forward(x, self.weight * scale[:, None, None, None], bias)


class ResidualBlock(nn.Module):
    """Basic (2 convolutions) or bottleneck (3) block, with a projection where sizes change."""

    def __init__(self, block: tv.BasicBlock | tv.Bottleneck, stride_in_1x1: bool) -> None:
        super().__init__()
        if block.downsample is not None:
            conv, norm = block.downsample
            self.shortcut = ConvNorm(conv, norm, conv.stride)
        else:
            self.shortcut = None
        strides = [block.conv1.stride, block.conv2.stride]
        bottleneck = isinstance(block, tv.Bottleneck)
        if bottleneck and stride_in_1x1:
            strides.reverse()
        self.conv1 = ConvNorm(block.conv1, block.bn1, strides[0])
        self.conv2 = ConvNorm(block.conv2, block.bn2, strides[1])
        if bottleneck:
            self.conv3 = ConvNorm(block.conv3, block.bn3, block.conv3.stride)
        self.bottleneck = bottleneck

    def forward(self, x: Tensor) -> Tensor:
        out, last = conv_relu(self.conv1, x), self.conv2
        if self.bottleneck:
            out, last = conv_relu(self.conv2, out), self.conv3
        return conv_relu(last, out, plus=x if self.shortcut is None else self.shortcut(x))


class Stem(nn.Module):
    """7×7 convolution and max pooling, stride 4 together."""

    def __init__(self, conv: nn.Conv2d, norm: nn.Module) -> None:
        super().__init__()
        self.conv1 = ConvNorm(conv, norm, conv.stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(conv_relu(self.conv1, x), kernel_size=3, stride=2, padding=1)


class ResNet(nn.Module):
    """ResNet-18, 34, 50 or 101 (arXiv 1512.03385) without its classifier.

    Args:
        depth: 18, 34, 50 or 101.
        norm: "BN", "FrozenBN" or "SyncBN".
        out_features: which of ``res2`` … ``res5`` to return; later stages are not built.
        freeze_at: 0 freezes nothing, 1 the stem, 2 the stem and res2, and so on; frozen batch
            norms become FrozenBN.
        stride_in_1x1: stride of a bottleneck in its first 1×1 convolution (MSRA's models) instead
            of the 3×3 (torchvision's).

    Raises:
        ValueError: an unknown depth, norm or feature, or no such stage to freeze.
    """

    def __init__(
        self,
        *,
        depth: int = 50,
        norm: str = "BN",
        out_features: Sequence[str] = STAGES,
        freeze_at: int = 0,
        stride_in_1x1: bool = False,
    ) -> None:
        super().__init__()
        if depth not in _TORCHVISION:
            choices = ", ".join(map(str, _TORCHVISION))
            raise ValueError(f"MODEL.RESNETS.DEPTH must be one of {choices}, got {depth}")
        if norm not in NORMS:
            raise ValueError(f"MODEL.RESNETS.NORM must be one of {', '.join(NORMS)}, got {norm!r}")
        unknown = [name for name in out_features if name not in STAGES]
        if unknown or not out_features:
            raise ValueError(
                f"MODEL.RESNETS.OUT_FEATURES must name some of {', '.join(STAGES)}, "
                f"got {list(out_features)}"
            )
        if not 0 <= freeze_at <= 5:
            raise ValueError(f"MODEL.BACKBONE.FREEZE_AT must be from 0 to 5, got {freeze_at}")
        source = _TORCHVISION[depth](weights=None, norm_layer=NORMS[norm])
        self.out_features = tuple(out_features)
        self.shapes: dict[str, Shape] = {}
        self.stem = Stem(source.conv1, source.bn1)
        for i, name in enumerate(STAGES[: 1 + max(map(STAGES.index, out_features))]):
            blocks = [ResidualBlock(b, stride_in_1x1) for b in getattr(source, f"layer{i + 1}")]
            self.add_module(name, nn.Sequential(*blocks))
            if name in out_features:
                last = blocks[-1].conv3 if blocks[-1].bottleneck else blocks[-1].conv2
                self.shapes[name] = Shape(last.out_channels, 4 * 2**i)
        for name in ("stem", *STAGES)[:freeze_at]:
            if name in self._modules:
                freeze(getattr(self, name))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Feature maps by name from images (B, 3, H, W)."""
        features = {}
        x = self.stem(x)
        for name in STAGES:
            if name not in self._modules:
                break
            x = getattr(self, name)(x)
            if name in self.out_features:
                features[name] = x
        return features


def freeze(module: nn.Module) -> None:
    """Stop training a module's parameters; its batch norms become FrozenBN."""
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d | nn.SyncBatchNorm):
                frozen = FrozenBatchNorm2d(child.num_features, eps=child.eps)
                state = child.state_dict()
                state.pop("num_batches_tracked")
                frozen.load_state_dict(state)
                setattr(parent, name, frozen)
