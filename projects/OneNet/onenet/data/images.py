"""Files, sizes and pixels of images before they reach a model; NumPy and Pillow alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image

from onenet.errors import UnreadableImageError

IMAGE_FORMATS = ("RGB", "BGR")

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
_QUARTER_TURNS = (5, 6, 7, 8)


def read_image(path: str, image_format: str = "RGB") -> np.ndarray:
    """(H, W, 3) uint8 pixels of an image file of any mode, upright by its EXIF orientation.

    The pixels are those that Detectron2's reader gives; of several frames, the first.

    Args:
        path: the file.
        image_format: order of the channels, "RGB" or "BGR".

    Raises:
        UnreadableImageError: the file is missing or cannot be decoded.
        ValueError: an unknown format.
    """
    if image_format not in IMAGE_FORMATS:
        raise ValueError(f"INPUT.FORMAT must be one of {IMAGE_FORMATS}, got {image_format!r}")
    with reading_errors(path), Image.open(path) as image:
        pixels = np.asarray(_upright(image).convert("RGB"))
    return pixels if image_format == "RGB" else pixels[:, :, ::-1]


def image_size(path: str) -> tuple[int, int]:
    """(H, W) px of what :func:`read_image` gives, from the head of the file alone.

    Raises:
        UnreadableImageError: the file is missing or no image.
    """
    with reading_errors(path), Image.open(path) as image:
        width, height = image.size
        return (width, height) if _orientation(image) in _QUARTER_TURNS else (height, width)


@contextmanager
def reading_errors(path: str) -> Iterator[None]:
    """What goes wrong while an image is read becomes an ``UnreadableImageError`` naming it."""
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise OSError("it is no regular file")  # a pipe would wait for ever
        yield
    except FileNotFoundError as error:
        raise UnreadableImageError(
            f"Image {str(path)!r} does not exist; check the image folder of the data set and the "
            f"file_name entries of its JSON."
        ) from error
    except Exception as error:  # decoders meet broken files with errors of every kind
        what = str(error) or type(error).__name__
        raise UnreadableImageError(f"Image {str(path)!r} cannot be read: {what}") from error


def check_image_size(
    path: str, image: np.ndarray, height: int, width: int, json_file: object, image_id: int
) -> None:
    """Compare an image (H, W, 3) with the height and width, px, that its JSON says.

    Raises:
        UnreadableImageError: they differ.
    """
    if image.shape[:2] != (height, width):
        raise UnreadableImageError(
            f"Image {str(path)!r} is {image.shape[1]} x {image.shape[0]} px (width x height, "
            f"upright by its EXIF orientation), but {json_file} says {width} x {height} for image "
            f"id {image_id}; correct the JSON or the image."
        )


def _orientation(image: Image.Image) -> int | None:
    try:
        return image.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # a broken EXIF block, which Pillow reports in many ways, turns nothing
        return None


def _upright(image: Image.Image) -> Image.Image:
    turn = _UPRIGHT.get(_orientation(image))
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


def resize_shortest_edge(image: np.ndarray, short: int, max_size: int | None = None) -> np.ndarray:
    """:func:`resize` to :func:`shortest_edge_size`; ``short`` 0 leaves an image as it is."""
    if short == 0:
        return image
    return resize(image, shortest_edge_size(*image.shape[:2], short, max_size))
