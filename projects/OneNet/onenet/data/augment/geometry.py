"""Augmentations that move, turn or scale: flip, scale_jitter, crop, affine."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from torch import Tensor
from torchvision.transforms.v2 import functional as F
from torchvision.tv_tensors import BoundingBoxes, BoundingBoxFormat

from .item import ROUNDING, Item, area, clipped, has_size
from .registry import AUGMENTATION_REGISTRY, Augmentation, Draw, chance, choice, number

GREY = 114  # what an image does not cover


@AUGMENTATION_REGISTRY.register()
@dataclass(frozen=True)
class flip(Augmentation):
    """Mirror the image."""

    direction: str = choice("horizontal", "vertical")
    probability: float = chance(0.5)

    @property
    def replaces(self) -> str:
        return f"RANDOM_FLIP {self.direction}"

    def apply(self, item: Item, random: np.random.Generator, draw: Draw) -> Item:
        return item.apply(F.horizontal_flip if self.direction == "horizontal" else F.vertical_flip)


@AUGMENTATION_REGISTRY.register()
@dataclass(frozen=True)
class scale_jitter(Augmentation):
    """Change the size of objects in a picture of the same shape.

    The factor is as likely to halve as to double. Below 1, the image shrinks and lies at a random
    place on grey; above 1, a random window of it remains, which the resize at the end enlarges.
    """

    low: float = number(0.5, least=0.1, most=1)
    high: float = number(2.0, least=1, most=10)
    min_visible: float = number(0.25, least=0, most=1)
    probability: float = chance(1.0)

    def apply(self, item: Item, random: np.random.Generator, draw: Draw) -> Item:
        factor = math.exp(random.uniform(math.log(self.low), math.log(self.high)))
        if factor >= 1:
            return item.window(random, _scaled(item.size, 1 / factor), self.min_visible)
        (height, width), size = item.size, _scaled(item.size, factor)
        top = int(random.integers(height - size[0] + 1))
        left = int(random.integers(width - size[1] + 1))
        around = [left, top, width - size[1] - left, height - size[0] - top]
        small = item.apply(partial(F.resize, size=list(size), antialias=True))
        placed = small.apply(partial(F.pad, padding=around, fill=[GREY] * 3))
        return placed.keep(has_size(placed.boxes))


@AUGMENTATION_REGISTRY.register()
@dataclass(frozen=True)
class crop(Augmentation):
    """Cut a random window, whose sides are shares of the image's, each drawn for itself."""

    smallest: float = number(0.6, least=0.05, most=1)
    min_visible: float = number(0.25, least=0, most=1)
    probability: float = chance(0.5)

    replaces = "CROP"

    def apply(self, item: Item, random: np.random.Generator, draw: Draw) -> Item:
        shares = random.uniform(self.smallest, 1, size=2)
        return item.window(random, _scaled(item.size, *shares), self.min_visible)


@AUGMENTATION_REGISTRY.register()
@dataclass(frozen=True)
class affine(Augmentation):
    """Rotate and shear about the centre; a box becomes the box around its turned corners."""

    rotation: float = number(10, least=0, most=180)
    shear: float = number(5, least=0, most=45)
    min_visible: float = number(0.25, least=0, most=1)
    probability: float = chance(0.5)

    def apply(self, item: Item, random: np.random.Generator, draw: Draw) -> Item:
        turn = partial(
            F.affine,
            angle=random.uniform(-self.rotation, self.rotation),
            shear=random.uniform(-self.shear, self.shear, size=2).tolist(),
            translate=[0, 0],
            scale=1.0,
            interpolation=F.InterpolationMode.BILINEAR,
            fill=[GREY] * 3,
        )
        whole = _unclipped(turn, item)
        turned = item.apply(turn)
        boxes = clipped(whole, item.size)
        seen = area(boxes) >= (self.min_visible - ROUNDING) * area(whole)
        return replace(turned, boxes=boxes).keep(seen & has_size(boxes))


def _unclipped(turn: partial, item: Item) -> Tensor:
    """(M, 4) boxes after a turn about the centre, which torchvision would clip to the image."""
    height, width = item.size
    margin = height + width
    canvas = height + 2 * margin, width + 2 * margin
    boxes = BoundingBoxes(item.boxes + margin, format=BoundingBoxFormat.XYXY, canvas_size=canvas)
    return turn(boxes).as_subclass(Tensor) - margin


def _scaled(size: tuple[int, int], vertical: float, horizontal: float | None = None) -> tuple:
    """(h, w) px, each at least 1."""
    horizontal = vertical if horizontal is None else horizontal
    return max(1, round(size[0] * vertical)), max(1, round(size[1] * horizontal))
