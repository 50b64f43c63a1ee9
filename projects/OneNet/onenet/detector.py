"""OneNet: backbone, head and criterion around each other."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from onenet.assignment.criterion import Criterion
from onenet.data.batching import DIVISIBILITY, group_by_shape, pad_to
from onenet.heads.base import BoxConv, Head
from onenet.inference.compilation import compile_for_each_size
from onenet.inference.fuse import fold_batch_norms
from onenet.inference.postprocess import best_detections, per_image
from onenet.ops.deform import DeformConv

from .structures import Detections, Predictions, TargetBatch, Targets

logger = logging.getLogger(__name__)

# Values of TEST.PRECISION.
PRECISIONS = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def memory_format(device: torch.device) -> torch.memory_format:
    """How maps lie in memory in training: ``channels_last`` on CUDA, and under autocast anywhere.

    Not in float32 on the CPU: torch's batch norm, in training, is a hundred times less exact there
    with it; untrained deep networks make percents of the gradient out of that. bfloat16 rounds by
    more than that whatever the format.
    """
    last = device.type == "cuda" or torch.is_autocast_enabled(device.type)
    return torch.channels_last if last else torch.contiguous_format


class OneNet(nn.Module):
    """One-stage detector without NMS (arXiv 2012.05780).

    Args:
        backbone: ``(B, 3, H, W) -> {name: (B, C, h, w)}``.
        head: see :mod:`onenet.heads`.
        criterion: see :mod:`onenet.assignment.criterion`; used in training only.
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
        size_divisibility: int = DIVISIBILITY,
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
        # What prepare_inference() has done.
        self.prepared = False
        self.precision: torch.dtype | None = None
        # Not persistent: checkpoints of Detectron2 and of the original do not hold them.
        mean, std = (torch.tensor(list(v)).view(3, 1, 1) for v in (pixel_mean, pixel_std))
        self.register_buffer("pixel_mean", mean, persistent=False)
        self.register_buffer("pixel_std", std, persistent=False)

    def fuse(self) -> OneNet:
        """Fold batch norms into convolutions and turn maps ``channels_last``, for inference only.

        The results are the same but for rounding. From then on the model neither trains nor gives
        a state dict: its weights are no longer those of a checkpoint.

        Returns:
            The model itself, in evaluation mode; see :mod:`onenet.inference.fuse`.
        """
        fold_batch_norms(self.eval().requires_grad_(False))
        self.prepared = True
        return self.to(memory_format=torch.channels_last)

    def prepare_inference(
        self, *, fuse: bool = True, precision: str = "float32", compile: bool = False
    ) -> OneNet:
        """Make a model on its device fast, for inference only; see :meth:`fuse`.

        Args:
            precision: of convolutions and matrix products, "float32", "bfloat16" or, on CUDA
                only, "float16". Boxes and scores are float32 in any case.
            compile: with ``torch.compile``, as CUDA graphs on CUDA. Every size of a batch, its
                number of images included, is compiled when it is first met, which takes seconds
                to minutes: for images of one size or of a few.

        Returns:
            The model itself, in evaluation mode.

        Raises:
            ValueError: an unknown precision, or float16 on the CPU.
        """
        device = self.pixel_mean.device
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
        if precision == "float16" and device.type == "cpu":
            raise ValueError("float16 is slower than float32 on the CPU; take bfloat16 there")
        self.eval()
        if fuse:
            self.fuse()
        if precision != "float32":
            self.prepared = True
            self.precision = PRECISIONS[precision]
            _convert_weights(self, self.precision)
        if compile:
            self.find = compile_for_each_size(self.find, device)
        logger.info(
            "Inference on %s: %s, %s%s",
            device,
            "batch norms folded, channels_last" if fuse else "as in training",
            precision,
            ", compiled for every size" if compile else "",
        )
        return self

    def train(self, mode: bool = True) -> OneNet:
        """Training mode, or evaluation; ``RuntimeError`` if a prepared model shall train."""
        if mode and self.prepared:
            raise RuntimeError(
                "this model was prepared for inference and cannot train; load its checkpoint into "
                "a new one"
            )
        return super().train(mode)

    def state_dict(self, *args: Any, **keywords: Any) -> dict[str, Any]:
        """As of every module; ``RuntimeError`` for a prepared model."""
        # Within another module, such as one to be exported, it is no checkpoint's.
        if self.prepared and not keywords.get("prefix"):
            raise RuntimeError(
                "this model was prepared for inference; its weights are not those of a checkpoint, "
                "which must be loaded or saved before"
            )
        return super().state_dict(*args, **keywords)

    def batch(self, images: Sequence[Tensor]) -> Tensor:
        """Normalise images on the model's device and pad them to one size, right and below.

        Args:
            images: (3, H, W) each, uint8 or float, 0…255.

        Returns:
            (B, 3, H', W') float32, of :func:`memory_format` or, once the model is fused,
            ``channels_last``; the padding is 0, the mean colour.
        """
        height, width = (
            pad_to(max(image.shape[dim] for image in images), self.size_divisibility)
            for dim in (1, 2)
        )
        device = self.pixel_mean.device
        like = torch.channels_last if self.prepared else memory_format(device)
        batch = torch.empty((len(images), 3, height, width), device=device, memory_format=like)
        batch.zero_()
        images = [image.to(device, non_blocking=True) for image in images]
        alike = all(image.shape == images[0].shape for image in images)
        parts = [(batch, torch.stack(images))] if alike else zip(batch, images, strict=True)
        for part, pixels in parts:
            inner = part[..., : pixels.shape[-2], : pixels.shape[-1]]
            torch.sub(pixels, self.pixel_mean, out=inner).div_(self.pixel_std)
        return batch

    def network(self, batch: Tensor) -> Predictions:
        """What the head says of normalised images (B, 3, H, W), H and W of the right multiples."""
        half = self.precision is not None
        with torch.autocast(batch.device.type, self.precision) if half else nullcontext():
            return self.head(self._features(batch))

    def _features(self, batch: Tensor) -> list[Tensor]:
        maps = self.backbone(batch)
        return [maps[name] for name in self.in_features]

    def find(self, batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes, scores and labels of the best in normalised images, before NMS, if any.

        Tensors alone, so that it can be compiled and exported; see
        :func:`~onenet.inference.postprocess.best_detections`.
        """
        return best_detections(self.network(batch), self.max_detections)

    def predict(self, images: Sequence[Tensor]) -> Predictions:
        """What the head says of a batch of images; see :meth:`batch` for their format."""
        return self.network(self.batch(images))

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Targets] | None = None
    ) -> dict[str, Tensor] | list[Detections]:
        """Losses in training, detections otherwise.

        Args:
            images: B of (3, H, W), uint8 or float, 0…255; sizes may differ.
            targets: B, in training only; boxes in px of these images.

        Returns:
            In training a dict of the weighted ``loss_ce``, ``loss_giou`` and ``loss_bbox``, and of
            ``loss_ce_2`` … for the head's further stages, each matched for itself; otherwise B
            :class:`~onenet.structures.Detections` in px of these images, boxes unclipped. Only
            images that are padded to one size go through the network together: what is found in
            an image does not depend on the others.

        Raises:
            ValueError: training without targets, or with another number of them than images.
        """
        if not self.training:
            return self._detect(images)
        if targets is None or len(targets) != len(images):
            given = "none" if targets is None else len(targets)
            raise ValueError(f"training needs targets for all {len(images)} images, got {given}")
        batch = TargetBatch.of(targets, self.pixel_mean.device)
        losses: dict[str, Tensor] = {}
        stages = self.head.stages(self._features(self.batch(images)))
        for number, predictions in enumerate(stages, start=1):
            ending = f"_{number}" if number > 1 else ""
            found = self.criterion(predictions, batch)
            losses |= {name + ending: loss for name, loss in found.items()}
        return losses

    def _detect(self, images: Sequence[Tensor]) -> list[Detections]:
        sizes = (tuple(image.shape[-2:]) for image in images)
        found: dict[int, Detections] = {}
        for group in group_by_shape(sizes, divisor=self.size_divisibility):
            best = self.find(self.batch([images[i] for i in group]))
            found |= zip(group, per_image(*best, self.nms_iou), strict=True)
        return [found[i] for i in range(len(images))]


@torch.no_grad()
def _convert_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Convert once what autocast would convert in every call."""
    for layer in model.modules():
        if isinstance(layer, BoxConv):
            continue
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear | DeformConv):
            for parameter in layer.parameters(recurse=False):
                parameter.data = parameter.data.to(dtype)
