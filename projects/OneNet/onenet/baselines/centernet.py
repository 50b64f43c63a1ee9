"""CenterNet (arXiv 1904.07850): the paper's rival, on OneNet's backbone and neck.

An object is its centre. A heat map for each class says where centres are; two more maps give the
size and the position of the centre within its cell. Objects are assigned by location alone, and
the 3×3 maxima of the heat map stand in for NMS.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onenet.assignment.criterion import mean_targets
from onenet.detector import DenseDetector
from onenet.heads.base import Head, conv3x3, per_sample
from onenet.heads.deconv import DeconvNeck
from onenet.ops.boxes import point_grid
from onenet.structures import Detections, Predictions, TargetBatch, Targets


@dataclass(frozen=True)
class CenterMaps:
    """The head's maps of H × W cells for B images.

    Attributes:
        logits: (B, K, H, W) float32, before the sigmoid: whether the cell holds a centre.
        sizes: (B, 2, H, W) float32 width and height, in cells.
        offsets: (B, 2, H, W) float32 (x, y) from the cell's upper left corner to the centre, in
            cells.
        stride: size of a cell, px.
    """

    logits: Tensor
    sizes: Tensor
    offsets: Tensor
    stride: int


class CenterHead(Head):
    """Neck and three branches, each a 3×3 convolution, ReLU and a 1×1 convolution.

    Initialised like OneNet's heads, so that the comparison is fair.

    Args:
        in_channels: C of the four maps, finest first.
        stride: of the finest map, px.
        num_classes: K.
        deconv_channels, deconv_kernels, dcn, modulated: see
            :class:`~onenet.heads.deconv.DeconvNeck`.
        channels: between a branch's two convolutions.
        prior_prob: see :class:`~onenet.heads.base.Head`.
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
        channels: int = 64,
        prior_prob: float = 0.1,
    ) -> None:
        super().__init__(num_classes=num_classes, prior_prob=prior_prob)
        self.stride = stride
        self.deconv = DeconvNeck(
            in_channels=in_channels,
            channels=deconv_channels,
            kernels=deconv_kernels,
            dcn=dcn,
            modulated=modulated,
        )
        self.cls_feat = conv3x3(deconv_channels[-1], channels)
        self.cls_score = nn.Conv2d(channels, num_classes, kernel_size=1)
        self.size_feat = conv3x3(deconv_channels[-1], channels)
        self.size_pred = nn.Conv2d(channels, 2, kernel_size=1)
        self.offset_feat = conv3x3(deconv_channels[-1], channels)
        self.offset_pred = nn.Conv2d(channels, 2, kernel_size=1)
        self.reset_parameters(self.cls_score)

    def forward(self, features: list[Tensor]) -> CenterMaps:
        """Maps from four (B, C_l, H_l, W_l), each half the size of the one before."""
        x = self.deconv(features)
        return CenterMaps(
            logits=self.cls_score(F.relu(self.cls_feat(x))).float(),
            sizes=self.size_pred(F.relu(self.size_feat(x))).float(),
            offsets=self.offset_pred(F.relu(self.offset_feat(x))).float(),
            stride=self.stride,
        )


def gaussian_radius(sizes: Tensor, min_overlap: float = 0.7) -> Tensor:
    """The distance from a centre within which the heat map reduces the penalty.

    CornerNet's rule (arXiv 1808.01244, section 3.2): the distance that both corners of a box can
    move outwards while its IoU stays at least ``min_overlap``. As in the code behind both papers'
    figures, 4 · ``min_overlap`` times that, in cells, rounded down.

    Args:
        sizes: (T, 2) width and height in cells, not negative.

    Returns:
        (T,) float32 whole numbers.
    """
    side = min_overlap * sizes.sum(dim=1)
    area = 4 * min_overlap * (1 - min_overlap) * sizes.prod(dim=1)
    return ((side**2 + area).sqrt() - side).floor()


def heat_map(rows: Tensor, cells: Tensor, radii: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Gaussians around centres; where several overlap, the largest value (section 3).

    Args:
        rows: (T,) int64, the map that an object belongs to.
        cells: (T, 2) int64 (x, y).
        radii: (T,) of :func:`gaussian_radius`; beyond them the Gaussian is 0.
        shape: maps, height and width.

    Returns:
        float32 of that shape; 1 at the centres and nowhere else.
    """
    maps, height, width = shape
    sigmas = (2 * radii[:, None] + 1) / 6

    def gaussian(count: int, centres: Tensor) -> Tensor:
        distances = (torch.arange(count, device=cells.device) - centres[:, None]).abs()
        return (-((distances / sigmas) ** 2) / 2).exp() * (distances <= radii[:, None])

    blobs = gaussian(height, cells[:, 1])[:, :, None] * gaussian(width, cells[:, 0])[:, None]
    heat = torch.zeros(maps, height, width, device=cells.device)
    return heat.scatter_reduce_(0, rows[:, None, None].expand_as(blobs), blobs, "amax")


def heat_loss(logits: Tensor, heat: Tensor, alpha: float = 2.0, beta: float = 4.0) -> Tensor:
    """Focal loss with a smaller penalty near centres (equation 1), summed.

    Args:
        logits: any shape, float32.
        heat: of the same shape, 0…1; 1 is a centre.

    Returns:
        Scalar float32.
    """
    centre = (-logits).sigmoid() ** alpha * F.softplus(-logits)
    other = (1 - heat) ** beta * logits.sigmoid() ** alpha * F.softplus(logits)
    return torch.where(heat == 1, centre, other).sum()


class CenterCriterion(nn.Module):
    """Every object trains the cell of its centre, even if two share a cell.

    Args:
        size_weight, offset_weight: weights of the L1 losses.
        min_overlap: see :func:`gaussian_radius`.
    """

    def __init__(
        self, *, size_weight: float = 0.1, offset_weight: float = 1.0, min_overlap: float = 0.7
    ) -> None:
        super().__init__()
        self.size_weight, self.offset_weight = size_weight, offset_weight
        self.min_overlap = min_overlap

    def forward(
        self, maps: CenterMaps, targets: Sequence[Targets] | TargetBatch
    ) -> dict[str, Tensor]:
        """Weighted losses, each a scalar float32 over the mean number of targets.

        Args:
            maps: of B images.
            targets: of these images. A centre outside the map counts for its edge.

        Returns:
            ``loss_heat`` (all cells and classes), ``loss_size`` and ``loss_offset`` (L1 in cells).
        """
        batch, classes, height, width = maps.logits.shape
        targets = TargetBatch.of(targets, maps.logits.device)
        image = targets.image
        boxes = targets.boxes / maps.stride
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        sizes = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0)
        x, y = centres.floor().long().unbind(dim=1)
        cells = torch.stack((x.clamp(0, width - 1), y.clamp(0, height - 1)), dim=1)

        heat = heat_map(
            image * classes + targets.labels,
            cells,
            gaussian_radius(sizes, self.min_overlap),
            (batch * classes, height, width),
        )
        x, y = cells.unbind(dim=1)
        losses = {
            "loss_heat": heat_loss(maps.logits, heat.view_as(maps.logits)),
            "loss_size": self.size_weight * (maps.sizes[image, :, y, x] - sizes).abs().sum(),
            "loss_offset": self.offset_weight
            * (maps.offsets[image, :, y, x] - (centres - cells)).abs().sum(),
        }
        normaliser = mean_targets(len(targets), maps.logits.device)
        return {name: loss / normaliser for name, loss in losses.items()}


def peaks(maps: CenterMaps, kernel: int = 3) -> Predictions:
    """One sample for each cell; a class's logit is -inf unless it is the largest around.

    Args:
        kernel: side of the neighbourhood in cells, odd; 1 keeps all.

    Returns:
        :class:`Predictions` of N = H · W samples.
    """
    highest = F.max_pool2d(maps.logits, kernel, stride=1, padding=kernel // 2)
    logits = maps.logits.masked_fill(maps.logits < highest, -torch.inf)
    points = point_grid(*logits.shape[-2:], maps.stride, logits.device)
    corners = points - maps.stride // 2
    centres = corners + maps.stride * per_sample(maps.offsets, 2)
    half = maps.stride / 2 * per_sample(maps.sizes, 2).clamp(min=0)
    return Predictions(
        logits=per_sample(logits, logits.shape[1]),
        boxes=torch.cat((centres - half, centres + half), dim=-1),
        samples=points.repeat(1, 2),
        levels=torch.zeros(len(points), dtype=torch.int64, device=points.device),
    )


class CenterNet(DenseDetector):
    """A :class:`CenterHead`, its :func:`peaks`, and a :class:`CenterCriterion`.

    Args:
        peak_kernel: see :func:`peaks`.
        options: of :class:`~onenet.detector.DenseDetector`; its NMS would come after the peaks.
    """

    head: CenterHead
    criterion: CenterCriterion

    def __init__(self, *, peak_kernel: int = 3, **options: Any) -> None:
        super().__init__(**options)
        if peak_kernel < 1 or peak_kernel % 2 == 0:
            raise ValueError(
                "the peaks' neighbourhood (MODEL.CenterNet.PEAK_KERNEL) must be an odd number of "
                f"cells, got {peak_kernel}"
            )
        self.peak_kernel = peak_kernel

    def network(self, batch: Tensor) -> Predictions:
        """The :func:`peaks` of the head's maps."""
        return peaks(self.head(self.features(batch)), self.peak_kernel)

    def losses(self, batch: Tensor, targets: TargetBatch) -> dict[str, Tensor]:
        """``loss_heat``, ``loss_size`` and ``loss_offset``; see :class:`CenterCriterion`."""
        return self.criterion(self.head(self.features(batch)), targets)

    def _detect(self, images: Sequence[Tensor]) -> list[Detections]:
        """Fewer than ``max_detections`` where there are fewer peaks."""
        found = super()._detect(images)
        if not found:
            return []
        # Best first, so the peaks come first; all are counted in one read.
        counts = torch.stack([(one.scores > 0).sum() for one in found]).tolist()
        return [one[:count] for one, count in zip(found, counts, strict=True)]
