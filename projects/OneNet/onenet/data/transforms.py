"""Flipping, cropping and resizing images with their boxes.

Pixels and boxes equal those of Detectron2's transforms, so both engines train and evaluate on the
same input.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .images import resize_shortest_edge

SAMPLINGS = ("choice", "range")
FLIPS = ("horizontal", "vertical", "none")
CROP_TYPES = ("absolute_range", "absolute", "relative", "relative_range")

# Before a crop, the shortest edge is resized to one of these lengths in px.
PRE_CROP_SIZES = (400, 500, 600)
# Share of the images that are cropped.
CROP_SHARE = 0.5
# Clipped boxes with a side of at most this many px are dropped.
EMPTY_SIDE = 1e-5


class TrainTransform:
    """Random flip, then in half of the cases a crop, then a random resize of the shortest edge.

    Args:
        min_sizes: lengths in px of the shortest edge to choose from, or the ends of a range; 0
            leaves the size as it is.
        max_size: limit of the longest edge in px.
        sampling: "choice" draws one of ``min_sizes``, "range" from their range, ends included.
        flip: "horizontal", "vertical" or "none"; half of the images are flipped.
        crop: None, or a type and its two numbers; half of the images are then resized to a
            shortest edge of 400, 500 or 600 px and cropped before the last resize. The types:

            - "absolute": (height, width) px
            - "absolute_range": (smallest, largest) px; each side is drawn from this range
            - "relative": (height, width) as fractions in (0, 1] of the image
            - "relative_range": (height, width) as the smallest such fractions; the largest is 1

    Raises:
        ValueError: an argument has another value; the message names its config key.
    """

    def __init__(
        self,
        *,
        min_sizes: Sequence[int],
        max_size: int,
        sampling: str = "choice",
        flip: str = "horizontal",
        crop: tuple[str, Sequence[float]] | None = None,
    ) -> None:
        if sampling not in SAMPLINGS:
            raise ValueError(
                f"INPUT.MIN_SIZE_TRAIN_SAMPLING must be one of {SAMPLINGS}, got {sampling!r}"
            )
        if flip not in FLIPS:
            raise ValueError(f"INPUT.RANDOM_FLIP must be one of {FLIPS}, got {flip!r}")
        if not min_sizes or min(min_sizes) < 0:
            raise ValueError(f"INPUT.MIN_SIZE_TRAIN must hold sizes in px, got {min_sizes!r}")
        if sampling == "range" and (len(min_sizes) != 2 or min_sizes[0] > min_sizes[1]):
            raise ValueError(
                f"INPUT.MIN_SIZE_TRAIN must be (least, most) px when "
                f"INPUT.MIN_SIZE_TRAIN_SAMPLING is 'range', got {tuple(min_sizes)!r}"
            )
        if max_size < 1:
            raise ValueError(f"INPUT.MAX_SIZE_TRAIN must be at least 1 px, got {max_size!r}")
        if crop is not None:
            _check_crop(*crop)
        self.min_sizes = tuple(min_sizes)
        self.max_size = max_size
        self.sampling = sampling
        self.flip = flip
        self.crop = crop

    def __call__(
        self, image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Transform one image; ``rng`` makes every random choice.

        Args:
            image: (H, W, 3) uint8.
            boxes: (M, 4) xyxy px.
            labels: (M,) int64.

        Returns:
            The image (h, w, 3) uint8; the boxes (m, 4) float32 that still have an area inside
            it, clipped to it; their labels (m,) int64.
        """
        boxes = boxes.astype(np.float64)
        if self.flip != "none" and rng.random() < 0.5:
            image, boxes = _flip(image, boxes, self.flip)
        if self.crop is not None and rng.random() < CROP_SHARE:
            short = PRE_CROP_SIZES[int(rng.integers(len(PRE_CROP_SIZES)))]
            image, boxes = _resize_shortest_edge(image, boxes, short, None)
            image, boxes = _crop(image, boxes, self.crop, rng)
        image, boxes = _resize_shortest_edge(image, boxes, self._short(rng), self.max_size)
        return image, *_inside(boxes, labels, image.shape[:2])

    def _short(self, rng: np.random.Generator) -> int:
        if self.sampling == "range":
            return int(rng.integers(self.min_sizes[0], self.min_sizes[1] + 1))
        return self.min_sizes[int(rng.integers(len(self.min_sizes)))]


class TestTransform:
    """Resize the shortest edge to ``min_size`` px and the longest to at most ``max_size`` px.

    ``min_size`` 0 leaves images as they are.

    Raises:
        ValueError: a negative ``min_size``, or a ``max_size`` below 1.
    """

    __test__ = False  # pytest would take the class for a test case by its name

    def __init__(self, min_size: int, max_size: int) -> None:
        if min_size < 0:
            raise ValueError(f"INPUT.MIN_SIZE_TEST must be 0 or a size in px, got {min_size!r}")
        if max_size < 1:
            raise ValueError(f"INPUT.MAX_SIZE_TEST must be at least 1 px, got {max_size!r}")
        self.min_size = min_size
        self.max_size = max_size

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Resize a (H, W, 3) uint8 image; returns (h, w, 3) uint8."""
        return resize_shortest_edge(image, self.min_size, self.max_size)


def scale_boxes(
    boxes: np.ndarray, labels: np.ndarray, size: tuple[int, int], new_size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes of an image on that image resized, as :class:`TrainTransform` leaves them.

    Args:
        boxes: (M, 4) xyxy px.
        labels: (M,) int64.
        size, new_size: (height, width) px before and after.

    Returns:
        The boxes (m, 4) float32 that have an area inside the image, clipped to it; their labels
        (m,) int64.
    """
    (height, width), (new_height, new_width) = size, new_size
    scale = np.tile([new_width / width, new_height / height], 2)
    return _inside(boxes.astype(np.float64) * scale, labels, new_size)


def _inside(
    boxes: np.ndarray, labels: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    height, width = size
    boxes = np.clip(boxes, 0, [width, height, width, height]).astype(np.float32)
    keep = (boxes[:, 2:] - boxes[:, :2] > EMPTY_SIDE).all(axis=1)
    return boxes[keep], labels[keep]


def _flip(image: np.ndarray, boxes: np.ndarray, direction: str) -> tuple[np.ndarray, np.ndarray]:
    height, width = image.shape[:2]
    x1, y1, x2, y2 = boxes.T
    if direction == "horizontal":
        return image[:, ::-1], np.stack((width - x2, y1, width - x1, y2), axis=1)
    return image[::-1], np.stack((x1, height - y2, x2, height - y1), axis=1)


def _resize_shortest_edge(
    image: np.ndarray, boxes: np.ndarray, short: int, max_size: int | None
) -> tuple[np.ndarray, np.ndarray]:
    resized = resize_shortest_edge(image, short, max_size)
    scale = np.divide(resized.shape[1::-1], image.shape[1::-1])
    return resized, boxes * np.tile(scale, 2)


def _crop(
    image: np.ndarray,
    boxes: np.ndarray,
    crop: tuple[str, Sequence[float]],
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    height, width = image.shape[:2]
    crop_height, crop_width = _crop_size(height, width, crop, rng)
    top = int(rng.integers(height - crop_height + 1))
    left = int(rng.integers(width - crop_width + 1))
    window = image[top : top + crop_height, left : left + crop_width]
    return window, boxes - np.array([left, top, left, top])


def _crop_size(
    height: int, width: int, crop: tuple[str, Sequence[float]], rng: np.random.Generator
) -> tuple[int, int]:
    kind, (first, second) = crop
    if kind == "absolute":
        return min(int(first), height), min(int(second), width)
    if kind == "absolute_range":
        low, high = int(first), int(second)
        return (
            int(rng.integers(min(height, low), min(height, high) + 1)),
            int(rng.integers(min(width, low), min(width, high) + 1)),
        )
    if kind == "relative_range":
        first = first + rng.random() * (1 - first)
        second = second + rng.random() * (1 - second)
    return max(int(height * first + 0.5), 1), max(int(width * second + 0.5), 1)


def _check_crop(kind: str, size: Sequence[float]) -> None:
    if kind not in CROP_TYPES:
        raise ValueError(f"INPUT.CROP.TYPE must be one of {CROP_TYPES}, got {kind!r}")
    relative = kind.startswith("relative")
    if len(size) != 2 or not all(0 < s <= 1 if relative else s >= 1 and s == int(s) for s in size):
        unit = "two fractions in (0, 1]" if relative else "two whole numbers of px"
        raise ValueError(f"INPUT.CROP.SIZE must be {unit} for {kind!r}, got {tuple(size)!r}")
    if kind == "absolute_range" and size[0] > size[1]:
        raise ValueError(f"INPUT.CROP.SIZE must be (least, most) px, got {tuple(size)!r}")
