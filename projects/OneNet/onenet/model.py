"""OneNet: backbone, head and criterion around each other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .heads import Head
from .inference import detect
from .losses import Criterion
from .structures import Detections, Predictions, Targets


def pad_to(size: int, divisor: int) -> int:
    """The next multiple of ``divisor`` from ``size`` on."""
    return -(-size // divisor) * divisor


def memory_format(device: torch.device) -> torch.memory_format:
    """How maps lie in memory: ``channels_last`` on CUDA, for its tensor cores.

    Not on the CPU: it is no faster there, and torch's batch norm, in training, a hundred times
    less exact; untrained deep networks make percents of the gradient out of that.
    """
    return torch.channels_last if device.type == "cuda" else torch.contiguous_format


class OneNet(nn.Module):
    """One-stage detector without NMS (arXiv 2012.05780).

    Args:
        backbone: ``(B, 3, H, W) -> {name: (B, C, h, w)}``.
        head: see :mod:`onenet.heads`.
        criterion: see :mod:`onenet.losses`; used in training only.
        in_features: names of the maps that the head reads, finest first.
        pixel_mean, pixel_std: of the three channels, in the images' channel order, 0…255.
        size_divisibility: batches are padded to a multiple of this many px, the backbone's
            largest stride.
        max_detections: k of the top-k.
        nms_iou: class-wise NMS after the top-k, for ablation; ``None``: no NMS.
    """

    def __init__(
        self,
        *,
        backbone: nn.Module,
        head: Head,
        criterion: Criterion,
        in_features: Sequence[str],
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        size_divisibility: int = 32,
        max_detections: int = 100,
        nms_iou: float | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.criterion = criterion
        self.in_features = tuple(in_features)
        self.size_divisibility = size_divisibility
        self.max_detections = max_detections
        self.nms_iou = nms_iou
        # Not persistent: checkpoints of Detectron2 and of the original do not hold them.
        mean, std = (torch.tensor(list(v)).view(3, 1, 1) for v in (pixel_mean, pixel_std))
        self.register_buffer("pixel_mean", mean, persistent=False)
        self.register_buffer("pixel_std", std, persistent=False)

    def batch(self, images: Sequence[Tensor]) -> Tensor:
        """Normalise images on the model's device and pad them to one size, right and below.

        Args:
            images: (3, H, W) each, uint8 or float, 0…255.

        Returns:
            (B, 3, H', W') float32, ``channels_last`` on CUDA; the padding is 0, the mean colour.
        """
        height, width = (
            pad_to(max(image.shape[dim] for image in images), self.size_divisibility)
            for dim in (1, 2)
        )
        device = self.pixel_mean.device
        batch = torch.empty(
            (len(images), 3, height, width), device=device, memory_format=memory_format(device)
        ).zero_()
        for row, image in zip(batch, images, strict=True):
            image = image.to(batch.device, non_blocking=True).float()
            row[:, : image.shape[1], : image.shape[2]] = (image - self.pixel_mean) / self.pixel_std
        return batch

    def predict(self, images: Sequence[Tensor]) -> Predictions:
        """What the head says of a batch of images; see :meth:`batch` for their format."""
        features = self.backbone(self.batch(images))
        return self.head([features[name] for name in self.in_features])

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Targets] | None = None
    ) -> dict[str, Tensor] | list[Detections]:
        """Losses in training, detections otherwise.

        Args:
            images: B of (3, H, W), uint8 or float, 0…255; sizes may differ.
            targets: B, in training only; boxes in px of these images.

        Returns:
            In training a dict of the weighted ``loss_ce``, ``loss_giou`` and ``loss_bbox``;
            otherwise B :class:`~onenet.structures.Detections` in px of these images, boxes
            unclipped.

        Raises:
            ValueError: training without targets, or with another number of them than images.
        """
        if not self.training:
            return detect(self.predict(images), self.max_detections, self.nms_iou)
        if targets is None or len(targets) != len(images):
            given = "none" if targets is None else len(targets)
            raise ValueError(f"training needs targets for all {len(images)} images, got {given}")
        predictions = self.predict(images)
        device = predictions.logits.device
        return self.criterion(predictions, [t.to(device, non_blocking=True) for t in targets])
