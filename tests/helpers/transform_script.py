"""Transforms with chance played by a script, and generated pictures to apply them to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from onenet.data.transforms import TrainTransform

DO, SKIP = 0.25, 0.75  # draws of rng.random() that make a transform with probability 1/2 happen


class Script:
    """In place of a random generator: returns the given draws, and checks their ranges."""

    def __init__(self, *draws: float) -> None:
        self.draws = list(draws)

    def random(self) -> float:
        return self.draws.pop(0)

    def integers(self, low: int, high: int | None = None) -> int:
        low, high = (0, low) if high is None else (low, high)
        value = self.draws.pop(0)
        assert isinstance(value, int) and low <= value < high, (value, low, high)
        return value


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def run(transform, image, boxes, *draws):
    """Apply a transform with scripted chance; labels 0, 1, … tell which boxes are left."""
    boxes = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    script = Script(*draws)
    result = transform(image, boxes, np.arange(len(boxes)), script)
    assert not script.draws, f"{len(script.draws)} draws left over"
    return result


def keep_size(**kwargs) -> TrainTransform:
    return TrainTransform(**{"min_sizes": (0,), "max_size": 5000, "flip": "none", **kwargs})


def save(path: Path, pixels: np.ndarray, mode: str = "RGB", orientation: int | None = None) -> str:
    """Write pixels to an image file, with an EXIF orientation where one is given."""
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.fromarray(pixels).convert(mode).save(path, exif=exif)
    return str(path)
