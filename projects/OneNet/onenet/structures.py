"""What the parts of OneNet hand to each other.

Boxes are absolute ``(x1, y1, x2, y2)`` in pixels of the resized, unpadded input image.
Letters: B images, N samples (grid points or anchors), M targets of one image, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Predictions:
    """What a head predicts for a batch. Every head returns this.

    Attributes:
        logits: (B, N, K) float32, class scores before the sigmoid.
        boxes: (B, N, 4) float32 xyxy px, decoded.
        samples: (N, 4) float32 xyxy px: the anchor, or the grid point twice.
        levels: (N,) int64, the feature level that each sample comes from, 0 the finest.
    """

    logits: Tensor
    boxes: Tensor
    samples: Tensor
    levels: Tensor


@dataclass(frozen=True)
class Targets:
    """Ground truth of one image; no objects (M = 0) is ordinary.

    Attributes:
        boxes: (M, 4) float32 xyxy px.
        labels: (M,) int64 in [0, K).
        image_size: (H, W) px of the resized, unpadded image.

    Raises:
        ValueError: shapes that do not belong together.
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
class Matches:
    """Positive samples of a batch: entry i pairs a sample with a target of the same image.

    Attributes:
        image, sample, target: (T,) int64 indices of equal length, ordered by image, then target.
    """

    image: Tensor
    sample: Tensor
    target: Tensor

    def __len__(self) -> int:
        return len(self.sample)


@dataclass(frozen=True)
class Detections:
    """What is found in one image, best score first.

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
