"""Reading and resizing images; needs NumPy and Pillow, not torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from onenet.errors import UnreadableImageError

IMAGE_FORMATS = ("RGB", "BGR")
WRITTEN_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
IMAGE_SUFFIXES = (*WRITTEN_SUFFIXES, ".gif", ".ppm", ".pgm")  # of the images in a folder

# Not PIL.ImageOps.exif_transpose: it fails on some damaged EXIF blocks.
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
# Formats whose size and orientation are final before they are loaded. Pillow turns a TIFF as it
# loads it, and a PNG may hold its orientation behind its pixels.
_FINAL_AT_OPENING = ("JPEG", "MPO")


def read_image(path: str, image_format: str = "RGB") -> np.ndarray:
    """Read an image file of any mode, upright by its EXIF or XMP orientation.

    Gives the same pixels as Detectron2's reader, except for TIFF files with an orientation, which
    that reader turns twice. Reads the first of several frames.

    Args:
        path: the file.
        image_format: order of the channels, "RGB" or "BGR".

    Returns:
        (H, W, 3) uint8.

    Raises:
        UnreadableImageError: the file is missing or cannot be decoded.
        ValueError: ``image_format`` is neither.
    """
    _check_format(image_format)
    with reading_errors(path):
        return decode_image(path, image_format)


def decode_image(file: str | BinaryIO, image_format: str) -> np.ndarray:
    """The same as :func:`read_image`, also from an open file; raises the decoder's own errors."""
    _check_format(image_format)
    with Image.open(file) as image:
        pixels = np.asarray(_upright(image).convert("RGB"))
    return pixels if image_format == "RGB" else pixels[:, :, ::-1]


def image_size(path: str) -> tuple[int, int]:
    """(H, W) px of the image that :func:`read_image` gives.

    Reads only the header of a JPEG file; decodes the other formats, whose size and orientation are
    final only then.

    Raises:
        UnreadableImageError: the file is missing, not an image, or (not in a JPEG file) damaged.
    """
    with reading_errors(path), Image.open(path) as image:
        if image.format not in _FINAL_AT_OPENING:
            image.load()
        width, height = image.size
        return (width, height) if _orientation(image) in _QUARTER_TURNS else (height, width)


def is_clipped(path: str) -> bool:
    """Whether an image holds values above 255, which :func:`read_image` makes 255.

    Such are 16-bit and floating-point images in grey; those in colour are scaled.

    Raises:
        UnreadableImageError: the file is missing or cannot be decoded.
    """
    with reading_errors(path), Image.open(path) as image:
        return image.mode[0] in "IF" and image.getextrema()[1] > 255


def _check_format(image_format: str) -> None:
    if image_format not in IMAGE_FORMATS:
        raise ValueError(f"INPUT.FORMAT must be one of {IMAGE_FORMATS}, got {image_format!r}")


@contextmanager
def reading_errors(path: str) -> Iterator[None]:
    """Turn any error raised while reading an image into an ``UnreadableImageError``."""
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise OSError("it is not a regular file")  # reading a pipe would wait forever
        yield
    except FileNotFoundError as error:
        raise UnreadableImageError(
            f"Image {str(path)!r} does not exist; check the image folder of the data set and the "
            f"file_name entries of its JSON."
        ) from error
    except Exception as error:  # decoders raise errors of every kind on broken files
        what = str(error) or type(error).__name__
        if isinstance(error, Image.DecompressionBombError):
            what += " Make the image smaller, or cut it into tiles."
        if isinstance(error, UnidentifiedImageError) and _is_heif(path):
            what += ": it is HEIC, as phones write it. Convert it to JPEG"
        raise UnreadableImageError(f"Image {str(path)!r} cannot be read: {what}") from error


def _is_heif(path: str) -> bool:
    with open(path, "rb") as file:
        head = file.read(12)
    return head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"heim", b"mif1", b"msf1")


def check_image_size(
    path: str, image: np.ndarray, height: int, width: int, json_file: object, image_id: int
) -> None:
    """Check that an image has the size that its JSON states.

    Args:
        path: file of the image, for the message.
        image: (H, W, 3).
        height, width: px, from the JSON.
        json_file, image_id: the JSON and the image's id in it, for the message.

    Raises:
        UnreadableImageError: the sizes differ.
    """
    if image.shape[:2] != (height, width):
        raise UnreadableImageError(
            f"Image {str(path)!r} is {image.shape[1]} x {image.shape[0]} px (width x height, "
            f"upright by its EXIF orientation), but {json_file} says {width} x {height} for image "
            f"id {image_id}; correct the JSON or the image."
        )


def _orientation(image: Image.Image) -> int | None:
    """The turn, by EXIF's number, that makes a loaded image upright."""
    if image.format == "TIFF":  # loading has turned it
        return None
    try:
        return image.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # Pillow raises many kinds of errors on a broken EXIF block: ignore it
        return None


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    turn = _UPRIGHT.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def shortest_edge_size(
    height: int, width: int, short: int, max_size: int | None = None
) -> tuple[int, int]:
    """(h, w) px after scaling the shorter edge to ``short`` and the longer to at most ``max_size``.

    Rounds halves up; a side is at least 1 px.

    Args:
        height, width: px before.
        short: px of the shorter edge.
        max_size: limit of the longer edge in px, which wins over ``short``; None: no limit.
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
    """Resize a (H, W, 3) uint8 image to (h, w) px with Pillow's antialiased bilinear filter."""
    height, width = size
    scaled = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(scaled)


def resize_shortest_edge(image: np.ndarray, short: int, max_size: int | None = None) -> np.ndarray:
    """Resize to :func:`shortest_edge_size`, as :func:`resize` does; ``short`` 0 changes nothing."""
    if short == 0:
        return image
    return resize(image, shortest_edge_size(*image.shape[:2], short, max_size))
