"""The data that the parts of OneNet exchange.

Boxes are absolute ``(x1, y1, x2, y2)`` in pixels of the resized, unpadded input image.
Letters: B images, N samples (grid points or anchors), M targets of one image, T targets of the
whole batch, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Predictions:
    """The predictions of a head for a batch; every head returns this.

    Attributes:
        logits: (B, N, K) class scores before the sigmoid, in the network's precision; float32
            where training would have float16.
        boxes: (B, N, 4) float32 xyxy px, decoded.
        samples: (N, 4) float32 xyxy px: the anchor, or the grid point twice.
        levels: (N,) int64, the feature level of each sample; 0 is the finest.
    """

    logits: Tensor
    boxes: Tensor
    samples: Tensor
    levels: Tensor

    @cached_property
    def entropy(self) -> Tensor:
        """(B, N) float32, the cross entropy of each sample if it had no class, over all classes.

        Computed once, however many parts of the targets are matched.
        """
        return F.softplus(self.logits.float()).sum(dim=2)


@dataclass(frozen=True)
class Targets:
    """Ground truth of one image; an image without objects (M = 0) is ordinary.

    Attributes:
        boxes: (M, 4) float32 xyxy px.
        labels: (M,) int64 in [0, K).
        image_size: (H, W) px of the resized, unpadded image.

    Raises:
        ValueError: the shapes do not fit together.
    """

    boxes: Tensor
    labels: Tensor
    image_size: tuple[int, int]

    def __post_init__(self) -> None:
        if self.boxes.ndim != 2 or self.boxes.shape[1] != 4:
            raise ValueError(f"Targets.boxes must have shape (M, 4), got {tuple(self.boxes.shape)}")
        if self.labels.shape != self.boxes.shape[:1]:
            raise ValueError(
                f"Targets.labels must have shape ({len(self.boxes)},) to go with its boxes, "
                f"got {tuple(self.labels.shape)}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Targets:
        """The same targets with their tensors on ``device``."""
        return replace(
            self,
            boxes=self.boxes.to(device, non_blocking=non_blocking),
            labels=self.labels.to(device, non_blocking=non_blocking),
        )


@dataclass(frozen=True)
class TargetBatch:
    """Ground truth of a batch: the targets of all images in one row, ordered by image.

    Attributes:
        boxes: (T, 4) float32 xyxy px.
        labels: (T,) int64 in [0, K).
        image: (T,) int64, the image that each target belongs to.
        scales: (T, 4) float32, (W, H, W, H) px of that image.
        counts: (B,) int64, the number of targets of each image; ``None`` for a part of a batch.
    """

    boxes: Tensor
    labels: Tensor
    image: Tensor
    scales: Tensor
    counts: Tensor | None

    @classmethod
    def of(cls, targets: Sequence[Targets] | TargetBatch, device: torch.device) -> TargetBatch:
        """The targets of B images on ``device``; the host does not wait for the copy.

        A ``TargetBatch`` is returned as it is.
        """
        if isinstance(targets, TargetBatch):
            return targets
        boxes = send(torch.cat([t.boxes for t in targets]).float(), device)
        labels = send(torch.cat([t.labels for t in targets]), device)
        sizes = torch.tensor([(len(t), *t.image_size) for t in targets])
        counts, height, width = send(sizes, device).unbind(dim=1)
        image = torch.repeat_interleave(counts, output_size=len(labels))
        scales = torch.stack((width, height, width, height), dim=1).float()
        return cls(boxes, labels, image, scales[image], counts)

    @property
    def starts(self) -> Tensor:
        """(B,) int64, where each image's targets begin; not for a part of a batch."""
        return self.counts.cumsum(dim=0) - self.counts

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, part: slice) -> TargetBatch:
        """A part of the targets, without ``counts``."""
        rows = (self.boxes, self.labels, self.image, self.scales)
        return TargetBatch(*(tensor[part] for tensor in rows), counts=None)


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on ``device``, which takes it from the CPU without making the host wait."""
    # Only from page-locked memory does the host not wait for what the device still has to do.
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


@dataclass(frozen=True)
class Matches:
    """Positive samples of a batch: entry i pairs a sample with a target of the same image.

    Minimum cost gives every target a sample: P = T. Hungarian matching gives min(M, N) pairs in
    each image, fewer than its targets where M > N. Other rules may give a target several, or none.

    Attributes:
        image, sample, target: (P,) int64 indices, ordered by image, then target; ``target``
            counts within the image.
        ignored: (B, N) bool, samples that are neither positive nor negative; ``None``: there are
            none.
    """

    image: Tensor
    sample: Tensor
    target: Tensor
    ignored: Tensor | None = None

    def __len__(self) -> int:
        return len(self.sample)


@dataclass(frozen=True)
class Detections:
    """The detections in one image, best score first.

    Attributes:
        boxes: (n, 4) float32 xyxy px.
        scores: (n,) float32 in [0, 1].
        labels: (n,) int64 in [0, K).
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, keep: Tensor | slice) -> Detections:
        """The detections that a mask, an index tensor or a slice selects."""
        return Detections(*(getattr(self, f.name)[keep] for f in fields(self)))

    def to(self, device: torch.device | str) -> Detections:
        """The same detections on ``device``."""
        return Detections(*(getattr(self, f.name).to(device) for f in fields(self)))
