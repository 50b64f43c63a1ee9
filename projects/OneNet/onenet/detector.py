"""OneNet: backbone, head and criterion around each other."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .assignment.criterion import Criterion
from .data.batching import DIVISIBILITY, group_by_shape, pad_to
from .heads.base import Head
from .heads.branch import Branch
from .inference.postprocess import best_detections, per_image
from .ops.memory_format import memory_format
from .structures import Detections, Predictions, TargetBatch, Targets


class DenseDetector(nn.Module):
    """Backbone and head, from images to detections without NMS; subclasses say what is trained.

    Args:
        backbone: ``(B, 3, H, W) -> {name: (B, C, h, w)}``; ``None``: the head holds it.
        head: from the maps in ``in_features`` to what :meth:`network` and :meth:`losses` read.
        criterion: used in training only.
        in_features: names of the maps that the head reads, finest first.
        pixel_mean, pixel_std: of the three channels, in the images' channel order, 0…255.
        size_divisibility: batches are padded to a multiple of this many px, the backbone's
            largest stride.
        max_detections: k of the top-k.
        nms_iou: class-wise NMS after the top-k, for ablation; ``None``: no NMS.

    Attributes:
        finding_waits: whether :meth:`find` makes the host wait for the device.
    """

    finding_waits = False

    def __init__(
        self,
        *,
        backbone: nn.Module | None,
        head: nn.Module,
        criterion: nn.Module,
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
        # Not persistent: checkpoints of Detectron2 and of the original do not hold them.
        mean, std = (torch.tensor(list(v)).view(3, 1, 1) for v in (pixel_mean, pixel_std))
        self.register_buffer("pixel_mean", mean, persistent=False)
        self.register_buffer("pixel_std", std, persistent=False)

    def drop_training_parts(self) -> None:
        """Remove what only training needs, in place."""

    def inputs(self, images: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """What :meth:`network`, :meth:`find` and :meth:`losses` read of images: the batch alone.

        Networks that depend on where an image ends and its padding begins add to it.
        """
        return (self.batch(images),)

    @abstractmethod
    def network(self, batch: Tensor) -> Predictions:
        """Predictions for normalised images (B, 3, H, W), H and W multiples of the divisibility."""

    @abstractmethod
    def losses(self, batch: Tensor, targets: TargetBatch) -> dict[str, Tensor]:
        """The weighted losses of normalised images (B, 3, H, W), by name."""

    def features(self, batch: Tensor) -> list[Tensor]:
        """The maps that the head reads, of normalised images (B, 3, H, W)."""
        maps = self.backbone(batch)
        return [maps[name] for name in self.in_features]

    def batch(self, images: Sequence[Tensor]) -> Tensor:
        """Normalise images on the model's device and pad them to one size, right and below.

        Args:
            images: (3, H, W) each, uint8 or float, 0…255.

        Returns:
            (B, 3, H', W') float32; the padding is 0, the mean colour.
        """
        height, width = (
            pad_to(max(image.shape[dim] for image in images), self.size_divisibility)
            for dim in (1, 2)
        )
        device = self.pixel_mean.device
        shape = (len(images), 3, height, width)
        batch = torch.empty(shape, device=device, memory_format=self.memory_format())
        batch.zero_()
        images = [image.to(device, non_blocking=True) for image in images]
        alike = all(image.shape == images[0].shape for image in images)
        parts = [(batch, torch.stack(images))] if alike else zip(batch, images, strict=True)
        for part, pixels in parts:
            inner = part[..., : pixels.shape[-2], : pixels.shape[-1]]
            torch.sub(pixels, self.pixel_mean, out=inner).div_(self.pixel_std)
        return batch

    def memory_format(self) -> torch.memory_format:
        """How the images of a batch lie in memory."""
        return memory_format(self.pixel_mean.device)

    def find(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes, scores and labels of the best detections for :meth:`inputs`, before any NMS.

        Tensors only, so that it can be compiled and exported; see
        :func:`~onenet.inference.postprocess.best_detections`.
        """
        return best_detections(self.network(*inputs), self.max_detections)

    def predict(self, images: Sequence[Tensor]) -> Predictions:
        """Predictions for a batch of images; see :meth:`batch` for their format."""
        return self.network(*self.inputs(images))

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Targets] | None = None
    ) -> dict[str, Tensor] | list[Detections]:
        """Losses in training, detections otherwise.

        Args:
            images: B of (3, H, W), uint8 or float, 0…255; sizes may differ.
            targets: B, in training only; boxes in px of these images.

        Returns:
            In training the dict of :meth:`losses`; otherwise B
            :class:`~onenet.structures.Detections` in px of these images, boxes unclipped. Only
            images that are padded to one size go through the network together: the detections of
            an image do not depend on the others.

        Raises:
            ValueError: training without targets, or with another number of them than images.
        """
        if not self.training:
            return self._detect(images)
        if targets is None or len(targets) != len(images):
            given = "none" if targets is None else len(targets)
            raise ValueError(f"training needs targets for all {len(images)} images, got {given}")
        ready = TargetBatch.of(targets, self.pixel_mean.device)
        return self.losses(*self.inputs(images), ready)

    def _detect(self, images: Sequence[Tensor]) -> list[Detections]:
        sizes = (tuple(image.shape[-2:]) for image in images)
        found: dict[int, Detections] = {}
        for group in group_by_shape(sizes, divisor=self.size_divisibility):
            best = self.find(*self.inputs([images[i] for i in group]))
            found |= zip(group, per_image(*best, self.nms_iou), strict=True)
        return [found[i] for i in range(len(images))]


class OneNet(DenseDetector):
    """One-stage detector without NMS (arXiv 2012.05780).

    Takes the arguments of :class:`DenseDetector` with

    Args:
        head: see :mod:`onenet.heads`.
        criterion: see :mod:`onenet.assignment.criterion`.
        aux: the head's one-to-many branch, for training only; ``None``: none.
        aux_criterion: of the branch.
    """

    head: Head
    criterion: Criterion

    def __init__(
        self, *, aux: Branch | None = None, aux_criterion: nn.Module | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        self.aux, self.aux_criterion = aux, aux_criterion

    def drop_training_parts(self) -> None:
        """Remove the one-to-many branch, in place."""
        self.aux = self.aux_criterion = None

    def network(self, batch: Tensor) -> Predictions:
        """The head's predictions; see :class:`DenseDetector`."""
        return self.head(self.features(batch))

    def losses(self, batch: Tensor, targets: TargetBatch) -> dict[str, Tensor]:
        """``loss_ce``, ``loss_giou`` and ``loss_bbox`` of every output of the head.

        Each output is matched by itself, and its name ends the losses' names: ``loss_ce_2`` … of
        further stages, ``loss_ce_aux`` … of the one-to-many branch.
        """
        features = self.features(batch)
        # A head of the user's need not know branches.
        branch = () if self.aux is None else (self.aux,)
        losses: dict[str, Tensor] = {}
        for name, predictions in self.head.outputs(features, *branch).items():
            criterion = self.aux_criterion if name == "aux" else self.criterion
            losses |= named(criterion(predictions, targets), name)
        return losses


def named(losses: Mapping[str, Tensor], output: str) -> dict[str, Tensor]:
    """Losses with the name of an output at the end of theirs: none for "main", 2 for "stage_2"."""
    ending = "" if output == "main" else f"_{output.removeprefix('stage_')}"
    return {term + ending: loss for term, loss in losses.items()}
