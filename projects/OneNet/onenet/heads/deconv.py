"""Deconvolution head: one map of stride 4, made by three upsampling stages (section 3.1).

The config names it "CenterNet", after the detector whose neck it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onenet.ops.boxes import decode_ltrb, point_grid
from onenet.ops.convolution import conv_relu
from onenet.ops.deform import DeformConv
from onenet.structures import Predictions

from .base import BoxConv, Head, conv3x3, per_sample
from .branch import Branch

ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu}
# (padding, output padding) with which a transposed convolution of stride 2 doubles its input.
_DECONV_PADDING = {2: (0, 0), 3: (1, 1), 4: (1, 0)}


def make_upsampling(channels: int, kernel: int) -> nn.ConvTranspose2d:
    """Transposed convolution that doubles height and width."""
    if kernel not in _DECONV_PADDING:
        raise ValueError(
            f"a deconvolution kernel must be one of {sorted(_DECONV_PADDING)}, got {kernel}"
        )
    padding, output_padding = _DECONV_PADDING[kernel]
    return nn.ConvTranspose2d(
        channels, channels, kernel, 2, padding, output_padding=output_padding, bias=False
    )


class DeconvLayer(nn.Module):
    """Convolution, batch norm, ReLU, doubling, batch norm, ReLU."""

    BATCH_NORMS = (("conv", "bn"), ("up_sample", "up_bn"))

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__()
        self.conv = conv3x3(in_channels, out_channels)
        nn.init.zeros_(self.conv.bias)
        self.bn = nn.BatchNorm2d(out_channels)
        self.up_sample = make_upsampling(out_channels, kernel)
        self.up_bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, out_channels, 2H, 2W)."""
        x = F.relu_(self.bn(self.conv(x)))
        return F.relu_(self.up_bn(self.up_sample(x)))


class DCNDeconvLayer(nn.Module):
    """Like :class:`DeconvLayer`, with a deformable convolution in front."""

    BATCH_NORMS = (("dcn", "dcn_bn"), ("up_sample", "up_bn"))

    def __init__(self, in_channels: int, out_channels: int, kernel: int, modulated: bool) -> None:
        super().__init__()
        self.dcn_offset = conv3x3(in_channels, 27 if modulated else 18)
        nn.init.zeros_(self.dcn_offset.bias)
        self.dcn = DeformConv(in_channels, out_channels)
        self.dcn_bn = nn.BatchNorm2d(out_channels)
        self.up_sample = make_upsampling(out_channels, kernel)
        self.up_bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, out_channels, 2H, 2W)."""
        guide = self.dcn_offset(x)
        mask = guide[:, 18:].sigmoid() if guide.shape[1] == 27 else None
        x = F.relu_(self.dcn_bn(self.dcn(x, guide[:, :18], mask)))
        return F.relu_(self.up_bn(self.up_sample(x)))


class DeconvNeck(nn.Module):
    """Neck: the coarsest map, doubled three times, with the finer maps added on the way.

    Args:
        in_channels: C of the four maps, finest first.
        channels: of the coarsest map and of the three stages.
        kernels: of the three transposed convolutions.
        dcn: deformable convolutions.
        modulated: v2 of them.
    """

    def __init__(
        self,
        *,
        in_channels: Sequence[int],
        channels: Sequence[int],
        kernels: Sequence[int],
        dcn: bool,
        modulated: bool,
    ) -> None:
        super().__init__()
        if len(in_channels) != 4 or len(channels) != 4 or len(kernels) != 3:
            raise ValueError(
                "the head needs 4 feature maps, 4 deconvolution channels and 3 kernels, "
                f"got {list(in_channels)}, {list(channels)} and {list(kernels)}"
            )
        if channels[0] != in_channels[-1]:
            raise ValueError(
                f"the first deconvolution channel (MODEL.OneNet.DECONV_CHANNEL) is {channels[0]}, "
                f"but the coarsest feature map has {in_channels[-1]} channels"
            )
        for i in range(3):
            c_in, c_out = channels[i], channels[i + 1]
            layer = (
                DCNDeconvLayer(c_in, c_out, kernels[i], modulated)
                if dcn
                else DeconvLayer(c_in, c_out, kernels[i])
            )
            self.add_module(f"deconv{i + 1}", layer)
            lateral = nn.Conv2d(in_channels[2 - i], c_out, kernel_size=1)
            self.add_module(f"lateral_conv{i + 1}", lateral)
        self.output_conv = conv3x3(channels[3], channels[3])

    def forward(self, features: list[Tensor]) -> Tensor:
        """(B, channels[-1], H, W) of the finest map's size."""
        fine3, fine2, fine1, x = features
        x = self.lateral_conv1(fine1) + self.deconv1(x)
        x = self.lateral_conv2(fine2) + self.deconv2(x)
        x = self.lateral_conv3(fine3) + self.deconv3(x)
        return self.output_conv(x)


class PairConv(nn.Conv2d):
    """3×3 convolution of two concatenated maps that keeps their size."""

    def __init__(self, channels: int) -> None:
        super().__init__(2 * channels, channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """(B, C, H, W) from two such maps; ``x`` alone stands for both, at half the cost."""
        if other is not None:
            return super().forward(torch.cat((x, other), dim=1))
        first, second = self.weight.chunk(2, dim=1)
        return F.conv2d(x, first + second, self.bias, padding=1)


class DeconvHead(Head):
    """One sample for every 4×4 px of the image: the paper's own head.

    With several stages, multi-head training (arXiv 2012.05780v1, section 4.1): the first stage
    reads the neck's map twice, each further stage that map and the output of the stage before.
    All stages share the class and the box convolution. A single stage reads the map once.

    Args:
        in_channels: C of the four maps, finest first.
        stride: of the finest map, px.
        num_classes: K.
        deconv_channels, deconv_kernels, dcn, modulated: see :class:`DeconvNeck`.
        activation: "relu" or "gelu".
        num_stages, inference_stages: see :class:`~onenet.heads.base.Head`; inference runs only the
            stages that it needs.
        prior_prob, init: see :class:`~onenet.heads.base.Head`.

    Example:
        >>> head = DeconvHead(in_channels=[8, 8, 8, 8], stride=4, num_classes=3,
        ...                      deconv_channels=[8, 8, 8, 8], dcn=False)
        >>> maps = [torch.rand(1, 8, 64 // s, 64 // s) for s in (4, 8, 16, 32)]
        >>> head(maps).boxes.shape
        torch.Size([1, 256, 4])
    """

    def __init__(
        self,
        *,
        in_channels: Sequence[int],
        stride: int,
        num_classes: int,
        deconv_channels: Sequence[int] = (2048, 256, 128, 64),
        deconv_kernels: Sequence[int] = (4, 4, 4),
        dcn: bool = True,
        modulated: bool = True,
        activation: str = "relu",
        num_stages: int = 1,
        inference_stages: int = 1,
        prior_prob: float = 0.01,
        init: str = "xavier",
    ) -> None:
        super().__init__(num_classes=num_classes, prior_prob=prior_prob, init=init)
        if activation not in ACTIVATIONS:
            choices = ", ".join(sorted(ACTIVATIONS))
            raise ValueError(f"activation must be one of {choices}, got {activation!r}")
        if num_stages < 1:
            raise ValueError(
                f"the stages (MODEL.OneNet.NUM_HEADS) must be 1 or more, got {num_stages}"
            )
        if not 1 <= inference_stages <= num_stages:
            raise ValueError(
                "the stages of inference (MODEL.OneNet.INFERENCE_HEADS) must be from 1 to "
                f"{num_stages} (MODEL.OneNet.NUM_HEADS), got {inference_stages}"
            )
        self.stride = stride
        self.activation = ACTIVATIONS[activation]
        self.deconv = DeconvNeck(
            in_channels=in_channels,
            channels=deconv_channels,
            kernels=deconv_kernels,
            dcn=dcn,
            modulated=modulated,
        )
        channels = deconv_channels[-1]
        self.num_stages, self.inference_stages = num_stages, inference_stages
        for number in range(1, num_stages + 1):
            conv = conv3x3(channels, channels) if num_stages == 1 else PairConv(channels)
            self.add_module(f"feat{number}", conv)
        self.cls_score = conv3x3(channels, num_classes)
        self.ltrb_pred = BoxConv(channels, 4)
        self.reset_parameters(self.cls_score)

    def forward(self, features: list[Tensor]) -> Predictions:
        """Predictions from four maps (B, C_l, H_l, W_l), each half the size of the one before."""
        x = self._maps(self.deconv(features), self.inference_stages)[-1]
        return self._predict(x, self.cls_score, self.ltrb_pred)

    def outputs(
        self, features: list[Tensor], branch: Branch | None = None
    ) -> dict[str, Predictions]:
        """Predictions of every stage from the same maps, by name, and those of a branch."""
        x = self.deconv(features)
        maps = self._maps(x if branch is None else branch.for_main(x), self.num_stages)
        names = ["main", *(f"stage_{number}" for number in range(2, self.num_stages + 1))]
        found = {
            name: self._predict(x, self.cls_score, self.ltrb_pred)
            for name, x in zip(names, maps, strict=True)
        }
        if branch is not None:
            x = self.activation(branch.feat(branch.for_branch(x)))
            found["aux"] = self._predict(x, branch.cls_score, branch.boxes(self.ltrb_pred))
        return found

    def make_branch(self, **options: Any) -> Branch:
        """A branch that reads the neck's map, as the first stage does."""
        return Branch(
            self.cls_score, self.ltrb_pred, init=self.init, prior_prob=self.prior_prob, **options
        )

    def _maps(self, x: Tensor, stages: int) -> list[Tensor]:
        """The outputs of the first stages, from the neck's map; (B, C, H, W) each."""
        relu = self.activation is F.relu
        maps = [conv_relu(self.feat1, x) if relu else self.activation(self.feat1(x))]
        for number in range(2, stages + 1):
            conv = getattr(self, f"feat{number}")
            maps.append(self.activation(conv(x, maps[-1])))
        return maps

    def _predict(self, x: Tensor, class_layer: nn.Module, box_layer: nn.Module) -> Predictions:
        points = point_grid(*x.shape[-2:], self.stride, x.device)
        distances = F.relu(per_sample(box_layer(x), 4).float())
        return Predictions(
            logits=self.logits(class_layer(x)),
            boxes=decode_ltrb(points, distances),
            samples=points.repeat(1, 2),
            # shape[0] and not len(), which torch.export would take for a constant.
            levels=torch.zeros(points.shape[0], dtype=torch.int64, device=x.device),
        )
