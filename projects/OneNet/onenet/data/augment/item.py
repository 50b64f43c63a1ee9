"""The image and objects that an augmentation gets and gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F
from torchvision.tv_tensors import BoundingBoxes, BoundingBoxFormat

from ..transforms import EMPTY_SIDE

ROUNDING = 1e-3  # of a share of an area


@dataclass(frozen=True)
class Item:
    """An image and its M objects.

    Attributes:
        image: (H, W, 3) uint8 RGB, whatever INPUT.FORMAT says; may be read-only.
        boxes: (M, 4) float32 xyxy px, inside the image.
        labels: (M,) int64.
        extras: further tensors with a row for each object, (M, …), by name.
    """

    image: np.ndarray
    boxes: Tensor
    labels: Tensor
    extras: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, image: np.ndarray, boxes: np.ndarray, labels: np.ndarray) -> Item:
        """An item as it is read: boxes are clipped to the image, and those outside go."""
        item = cls(image, torch.from_numpy(boxes).float(), torch.from_numpy(labels))
        boxes = clipped(item.boxes, item.size)
        return replace(item, boxes=boxes).keep(has_size(boxes))

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) px."""
        height, width = self.image.shape[:2]
        return height, width

    def keep(self, rows: Tensor) -> Item:
        """The item with some of its objects.

        Args:
            rows: (M,) bool, or indices.
        """
        extras = {name: values[rows] for name, values in self.extras.items()}
        return replace(self, boxes=self.boxes[rows], labels=self.labels[rows], extras=extras)

    def apply(self, operator: Callable) -> Item:
        """Transform image and boxes by one of ``torchvision.transforms.v2.functional``.

        Args:
            operator: takes a Pillow image, or boxes as a tv_tensor, and nothing else:
                ``partial(F.resize, size=[480, 640])``.
        """
        boxes = BoundingBoxes(self.boxes, format=BoundingBoxFormat.XYXY, canvas_size=self.size)
        return replace(
            self,
            image=np.asarray(operator(Image.fromarray(self.image))),
            boxes=operator(boxes).as_subclass(Tensor),
        )

    def recolour(self, operator: Callable[[Image.Image], Image.Image]) -> Item:
        """Transform the image alone, as a Pillow image."""
        return replace(self, image=np.asarray(operator(Image.fromarray(self.image))))

    def window(
        self,
        random: np.random.Generator,
        size: tuple[int, int],
        min_visible: float,
        resized: tuple[int, int] | None = None,
    ) -> Item:
        """A part of the image at a random place; boxes are clipped to it.

        Args:
            random: draws the place.
            size: (h, w) px of the part, at most those of the image.
            min_visible: objects go if a smaller share of their box's area is in the part.
            resized: (h', w') px that the part is then resized to; None: it is not.
        """
        height, width = self.size
        top = int(random.integers(height - size[0] + 1))
        left = int(random.integers(width - size[1] + 1))
        place = {"top": top, "left": left, "height": size[0], "width": size[1]}
        before, scale = area(self.boxes), 1.0
        if resized in (None, size):
            item = self.apply(partial(F.crop, **place))
        else:
            item = self.apply(partial(F.resized_crop, **place, size=list(resized), antialias=True))
            scale = resized[0] * resized[1] / (size[0] * size[1])
        item = replace(item, boxes=clipped(item.boxes, item.size))  # up to rounding
        seen = area(item.boxes) >= (min_visible - ROUNDING) * scale * before
        return item.keep(seen & has_size(item.boxes))


def joined(image: np.ndarray, items: Sequence[Item]) -> Item:
    """An image with the objects of all items, whose boxes are in its px.

    Raises:
        ValueError: the items have extras of different names.
    """
    names = [set(item.extras) for item in items]
    if any(other != names[0] for other in names):
        raise ValueError(f"items to join have different extras: {names}")
    return Item(
        image,
        torch.cat([item.boxes for item in items]),
        torch.cat([item.labels for item in items]),
        {name: torch.cat([item.extras[name] for item in items]) for name in names[0]},
    )


def clipped(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """(M, 4) xyxy boxes, clipped to an image of (H, W) px."""
    height, width = size
    return boxes.clamp(min=0).minimum(boxes.new_tensor([width, height, width, height]))


def area(boxes: Tensor) -> Tensor:
    """(M,) px² of (M, 4) xyxy boxes; 0 if a side is negative."""
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1)


def has_size(boxes: Tensor) -> Tensor:
    """(M,) bool: which (M, 4) xyxy boxes have an area, by the rule of the plain pipeline."""
    return (boxes[:, 2:] - boxes[:, :2] > EMPTY_SIDE).all(dim=1)
