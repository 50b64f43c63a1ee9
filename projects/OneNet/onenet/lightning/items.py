"""What the loaders yield: an image, its targets, and where it comes from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onenet.structures import Targets


@dataclass(frozen=True)
class TrainItem:
    """One transformed training image.

    Attributes:
        image: (3, H, W) uint8.
        targets: its boxes and labels, in px of ``image``.
        image_id: the JSON's id.
        file_name: full path of the image.
        skipped: an error message for each unreadable image that this one replaces.
    """

    image: Tensor
    targets: Targets
    image_id: int
    file_name: str
    skipped: tuple[str, ...] = ()

    def pin_memory(self) -> TrainItem:
        """The same item in page-locked memory; a DataLoader looks for this method."""
        t = self.targets
        pinned = replace(t, boxes=t.boxes.pin_memory(), labels=t.labels.pin_memory())
        return replace(self, image=self.image.pin_memory(), targets=pinned)

    def __reduce__(self) -> tuple[Any, tuple]:
        # Every tensor that a worker sends takes a file descriptor, and a process has about a
        # thousand: only the image is worth one.
        t = self.targets
        small = (t.boxes.numpy(), t.labels.numpy(), t.image_size)
        return _rebuild, (self.image, *small, self.image_id, self.file_name, self.skipped)


def _rebuild(
    image: Tensor,
    boxes: np.ndarray,
    labels: np.ndarray,
    image_size: tuple[int, int],
    image_id: int,
    file_name: str,
    skipped: tuple[str, ...],
) -> TrainItem:
    targets = Targets(torch.from_numpy(boxes), torch.from_numpy(labels), image_size)
    return TrainItem(image, targets, image_id, file_name, skipped)


@dataclass(frozen=True)
class TestItem:
    """One image to test on.

    Attributes:
        image: (3, h, w) uint8, resized.
        image_id: the JSON's id.
        file_name: full path of the image.
        height, width: px of the original image, to which detections are scaled back.
    """

    __test__ = False  # not a test case; pytest goes by the name

    image: Tensor
    image_id: int
    file_name: str
    height: int
    width: int

    def pin_memory(self) -> TestItem:
        """The same item in page-locked memory; a DataLoader looks for this method."""
        return replace(self, image=self.image.pin_memory())
