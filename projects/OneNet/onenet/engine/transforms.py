"""Reading, flipping, cropping and resizing images with their boxes.

Pixels and boxes are those that Detectron2's reader and transforms give, so that both engines
train and evaluate on the same input.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from onenet.datasets import DatasetError

IMAGE_FORMATS = ("RGB", "BGR")
SAMPLINGS = ("choice", "range")
FLIPS = ("horizontal", "vertical", "none")
CROP_TYPES = ("absolute_range", "absolute", "relative", "relative_range")

# Shortest edges, in px, to one of which an image is resized before it is cropped.
PRE_CROP_SIZES = (400, 500, 600)
# A clipped box whose side is no longer than this, in px, is gone.
EMPTY_SIDE = 1e-5

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(path: str, image_format: str = "RGB") -> np.ndarray:
    """(H, W, 3) uint8 pixels of an image file of any mode, upright by its EXIF orientation.

    Args:
        path: the file.
        image_format: order of the channels, "RGB" or "BGR".

    Raises:
        DatasetError: the file is missing or cannot be decoded.
        ValueError: an unknown format.
    """
    if image_format not in IMAGE_FORMATS:
        raise ValueError(f"INPUT.FORMAT must be one of {IMAGE_FORMATS}, got {image_format!r}")
    try:
        with Image.open(path) as image:
            pixels = np.asarray(_upright(image).convert("RGB"))
    except FileNotFoundError as error:
        raise DatasetError(
            f"Image {str(path)!r} does not exist; check the image folder of the data set and the "
            f"file_name entries of its JSON."
        ) from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        # SyntaxError is how Pillow reports some broken PNG files.
        raise DatasetError(f"Image {str(path)!r} cannot be read: {error}") from error
    return pixels if image_format == "RGB" else pixels[:, :, ::-1]


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # a broken EXIF block, which Pillow reports in many ways, turns nothing
        return image
    turn = _UPRIGHT.get(orientation)
    return image if turn is None else image.transpose(turn)


def shortest_edge_size(
    height: int, width: int, short: int, max_size: int | None = None
) -> tuple[int, int]:
    """(h, w) px after scaling the shorter edge to ``short``, the longer to ``max_size`` at most.

    Halves are rounded up; a side is never less than 1 px. ``max_size`` None sets no limit.
    """
    scale = float(short) / min(height, width)
    if height < width:
        new_height, new_width = float(short), scale * width
    else:
        new_height, new_width = scale * height, float(short)
    longest = max(new_height, new_width)
    if max_size is not None and longest > max_size:
        scale = float(max_size) / longest
        new_height, new_width = new_height * scale, new_width * scale
    return max(int(new_height + 0.5), 1), max(int(new_width + 0.5), 1)


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A (H, W, 3) uint8 image at ``size`` (h, w), by Pillow's (antialiased) bilinear filter."""
    height, width = size
    scaled = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(scaled)


class TrainTransform:
    """Random flip, then at times a resize and a crop, then a random resize of the shortest edge.

    Args:
        min_sizes: lengths in px of the shortest edge to choose from, or the ends of a range; 0
            leaves the size as it is.
        max_size: limit of the longest edge in px.
        sampling: "choice" or "range" (both ends included) of ``min_sizes``.
        flip: "horizontal", "vertical" or "none"; half of the images are flipped.
        crop: None, or a type and its two numbers; half of the images are then resized to a
            shortest edge of 400, 500 or 600 px and cropped before the last resize. The types:

            - "absolute": (height, width) px
            - "absolute_range": (least, most) px; each side is drawn from this range
            - "relative": (height, width) as fractions in (0, 1] of the image
            - "relative_range": the least of such fractions; the most is 1

    Raises:
        ValueError: a value that is not among these.
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
        """Transform one image; all chance comes from ``rng``.

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
        if self.crop is not None and rng.random() < 0.5:
            short = PRE_CROP_SIZES[int(rng.integers(len(PRE_CROP_SIZES)))]
            image, boxes = _resize_shortest_edge(image, boxes, short, None)
            image, boxes = _crop(image, boxes, self.crop, rng)
        image, boxes = _resize_shortest_edge(image, boxes, self._short(rng), self.max_size)
        height, width = image.shape[:2]
        boxes = np.clip(boxes, 0, [width, height, width, height]).astype(np.float32)
        keep = (boxes[:, 2:] - boxes[:, :2] > EMPTY_SIDE).all(axis=1)
        return image, boxes[keep], labels[keep]

    def _short(self, rng: np.random.Generator) -> int:
        if self.sampling == "range":
            return int(rng.integers(self.min_sizes[0], self.min_sizes[1] + 1))
        return self.min_sizes[int(rng.integers(len(self.min_sizes)))]


class TestTransform:
    """Resize of the shortest edge to ``min_size`` px, the longest to ``max_size`` at most.

    ``min_size`` 0 leaves images as they are.
    """

    __test__ = False  # no test case, whatever pytest makes of the name

    def __init__(self, min_size: int, max_size: int) -> None:
        if min_size < 0:
            raise ValueError(f"INPUT.MIN_SIZE_TEST must be 0 or a size in px, got {min_size!r}")
        if max_size < 1:
            raise ValueError(f"INPUT.MAX_SIZE_TEST must be at least 1 px, got {max_size!r}")
        self.min_size = min_size
        self.max_size = max_size

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """A (H, W, 3) uint8 image to its (h, w, 3) uint8 version."""
        no_boxes = np.zeros((0, 4))
        return _resize_shortest_edge(image, no_boxes, self.min_size, self.max_size)[0]


def _flip(image: np.ndarray, boxes: np.ndarray, direction: str) -> tuple[np.ndarray, np.ndarray]:
    height, width = image.shape[:2]
    x1, y1, x2, y2 = boxes.T
    if direction == "horizontal":
        return image[:, ::-1], np.stack((width - x2, y1, width - x1, y2), axis=1)
    return image[::-1], np.stack((x1, height - y2, x2, height - y1), axis=1)


def _resize_shortest_edge(
    image: np.ndarray, boxes: np.ndarray, short: int, max_size: int | None
) -> tuple[np.ndarray, np.ndarray]:
    if short == 0:
        return image, boxes
    height, width = image.shape[:2]
    new_height, new_width = shortest_edge_size(height, width, short, max_size)
    scale = np.array([new_width / width, new_height / height] * 2)
    return resize(image, (new_height, new_width)), boxes * scale


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
