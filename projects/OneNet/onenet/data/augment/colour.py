"""Augmentations that change colours and sharpness, and no box."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter
from torchvision.transforms.v2 import functional as F

from .item import Item
from .registry import AUGMENTATION_REGISTRY, Augmentation, Draw, chance, number


@AUGMENTATION_REGISTRY.register()
@dataclass(frozen=True)
class photometric(Augmentation):
    """Change brightness, contrast and saturation by factors near 1, and turn the hue.

    ``brightness=0.2`` draws a factor from 0.8 to 1.2; ``hue`` is a share of the colour circle. A
    parameter of 0 costs nothing.
    """

    brightness: float = number(0.2, least=0, most=1)
    contrast: float = number(0.2, least=0, most=1)
    saturation: float = number(0.3, least=0, most=1)
    hue: float = number(0.0, least=0, most=0.5)
    probability: float = chance(0.8)

    def apply(self, item: Item, random: np.random.Generator, draw: Draw) -> Item:
        brightness, contrast, saturation, hue = random.uniform(-1, 1, size=4)

        def change(image: Image.Image) -> Image.Image:
            if self.brightness:
                image = F.adjust_brightness(image, 1 + self.brightness * brightness)
            if self.contrast:
                image = F.adjust_contrast(image, 1 + self.contrast * contrast)
            if self.saturation:
                image = F.adjust_saturation(image, 1 + self.saturation * saturation)
            return F.adjust_hue(image, self.hue * hue) if self.hue else image

        return item.recolour(change)


@AUGMENTATION_REGISTRY.register()
@dataclass(frozen=True)
class grey(Augmentation):
    """Make the image grey."""

    probability: float = chance(0.1)

    def apply(self, item: Item, random: np.random.Generator, draw: Draw) -> Item:
        return item.recolour(lambda image: F.rgb_to_grayscale(image, num_output_channels=3))


@AUGMENTATION_REGISTRY.register()
@dataclass(frozen=True)
class blur(Augmentation):
    """Blur with a Gaussian of up to ``sigma`` px of the image as read."""

    sigma: float = number(2.0, least=0.1, most=50)
    probability: float = chance(0.1)

    def apply(self, item: Item, random: np.random.Generator, draw: Draw) -> Item:
        # Pillow's takes a fraction of the time of torchvision's.
        gaussian = ImageFilter.GaussianBlur(self.sigma * random.random())
        return item.recolour(lambda image: image.filter(gaussian))


@AUGMENTATION_REGISTRY.register()
@dataclass(frozen=True)
class jpeg(Augmentation):
    """Compress as JPEG, with a quality from ``quality`` to 95 as Pillow counts it."""

    quality: float = number(30, least=1, most=95)
    probability: float = chance(0.1)

    def apply(self, item: Item, random: np.random.Generator, draw: Draw) -> Item:
        quality = int(random.integers(int(self.quality), 96))

        def compress(image: Image.Image) -> Image.Image:
            file = io.BytesIO()
            image.save(file, "JPEG", quality=quality)
            return Image.open(file)

        return item.recolour(compress)
