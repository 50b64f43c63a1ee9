"""Augmentations that combine several images: mosaic, mixup."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from PIL import Image

from .item import Item, joined
from .registry import AUGMENTATION_REGISTRY, Augmentation, Draw, chance, number


@AUGMENTATION_REGISTRY.register()
@dataclass(frozen=True)
class mosaic(Augmentation):
    """Fill the image's four quarters, of random size, with windows of it and of three others.

    ``low`` and ``high`` are the size of the objects in it, relative to that in an image by itself;
    a window that would be larger than its image enlarges it until it fills its quarter.
    """

    strong: ClassVar[bool] = True

    low: float = number(0.5, least=0.1, most=1)
    high: float = number(1.0, least=1, most=10)
    min_visible: float = number(0.25, least=0, most=1)
    probability: float = chance(0.5)

    def apply(self, item: Item, random: np.random.Generator, draw: Draw) -> Item:
        height, width = item.size
        if min(height, width) < 2:
            return item
        y, x = _cut(random, height), _cut(random, width)
        canvas = np.empty((height, width, 3), np.uint8)
        parts = []
        places = [(0, 0, y, x), (0, x, y, width), (y, 0, height, x), (y, x, height, width)]
        for top, left, bottom, right in places:
            other = item if not parts else draw(random)
            scale = random.uniform(self.low, self.high)
            size = bottom - top, right - left
            part = fill(other, random, size, scale * _natural(item, other), self.min_visible)
            canvas[top:bottom, left:right] = part.image
            offset = part.boxes.new_tensor([left, top, left, top])
            parts.append(replace(part, boxes=part.boxes + offset))
        return joined(canvas, parts)


@AUGMENTATION_REGISTRY.register()
@dataclass(frozen=True)
class mixup(Augmentation):
    """Blend the image with a window of another one; the objects of both are targets.

    The image's weight is drawn from Beta(``alpha``, ``alpha``): the larger, the nearer to 1/2.
    """

    strong: ClassVar[bool] = True

    alpha: float = number(8.0, least=1, most=1000)
    min_visible: float = number(0.25, least=0, most=1)
    probability: float = chance(0.15)

    def apply(self, item: Item, random: np.random.Generator, draw: Draw) -> Item:
        other = draw(random)
        other = fill(other, random, item.size, _natural(item, other), self.min_visible)
        weight = float(random.beta(self.alpha, self.alpha))
        images = Image.fromarray(other.image), Image.fromarray(item.image)
        return joined(np.asarray(Image.blend(*images, weight)), [item, other])


def fill(
    item: Item,
    random: np.random.Generator,
    size: tuple[int, int],
    scale: float,
    min_visible: float,
) -> Item:
    """A random window of an image, resized to ``size`` (h, w) px.

    Args:
        scale: px of the result for each px of the image; more where the image would not fill it.
        min_visible: see :meth:`Item.window`.
    """
    height, width = item.size
    scale = max(scale, size[0] / height, size[1] / width)
    window = min(height, max(1, round(size[0] / scale))), min(width, max(1, round(size[1] / scale)))
    return item.window(random, window, min_visible, resized=size)


def _natural(item: Item, other: Item) -> float:
    """The factor by which the other's shorter side becomes as long as the image's."""
    return min(item.size) / min(other.size)


def _cut(random: np.random.Generator, side: int) -> int:
    """Where to divide a side of at least 2 px, in its middle half."""
    return max(1, round(side * random.uniform(0.25, 0.75)))
