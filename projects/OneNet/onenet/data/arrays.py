"""The images that a program of yours gives to a predictor; needs NumPy, not torch."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from onenet.errors import DatasetError

EXPECTED = "a NumPy array (H, W, 3) uint8 RGB"


def check_images(images: Iterable[np.ndarray]) -> list[np.ndarray]:
    """The images as a list, once each of them is (H, W, 3) uint8 with at least one pixel.

    Cannot tell RGB from BGR: give RGB.

    Raises:
        DatasetError: something else; says which image, what it is, and how to convert it.
    """
    if isinstance(images, np.ndarray) and images.ndim != 4:
        raise DatasetError(
            f"Expected several images, got one array of shape {images.shape}: give "
            "predict_batch([image]), or predictor(image)"
        )
    if isinstance(images, (str, bytes)) or not isinstance(images, Iterable):
        raise DatasetError(f"Expected several images, got {_described(images)}")
    images = list(images)
    for number, image in enumerate(images, start=1):
        if advice := _problem(image):
            which = f"image {number} of {len(images)}" if len(images) > 1 else "the image"
            raise DatasetError(
                f"Expected {EXPECTED}, but {which} is {_described(image)}. {advice}."
            )
    return images


def _described(image: object) -> str:
    if isinstance(image, np.ndarray):
        return f"{image.dtype} of shape {image.shape}"
    kind = type(image)
    if image is None or isinstance(image, (str, bytes)):
        return f"{image!r:.200}"
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"


def _problem(image: object) -> str | None:
    """What to do about an image that a predictor cannot take; None if it can."""
    if image is None:
        return (
            "cv2.imread returns None for a file that it cannot read; onenet.read_image(path) "
            "raises an error that says why"
        )
    if not isinstance(image, np.ndarray):
        return (
            "Read a file with onenet.read_image(path). Convert a Pillow image with "
            'numpy.asarray(image.convert("RGB")), a (3, H, W) tensor with '
            "image.permute(1, 2, 0).cpu().numpy()"
        )
    return _shape_problem(image) or _dtype_problem(image)


def _shape_problem(image: np.ndarray) -> str | None:
    shape = image.shape
    if image.size == 0:
        return "It holds no pixels; check the crop or the frame that it comes from"
    if image.ndim == 4:
        return "Give the images of a batch one by one: predict_batch(list(images))"
    if image.ndim == 2 or (image.ndim == 3 and shape[2] == 1):
        return "For a grey image, repeat its channel: numpy.dstack([image] * 3)"
    if image.ndim == 3 and shape[2] == 3:
        return None
    if image.ndim == 3 and shape[2] == 4:
        return "Remove the alpha channel: image[..., :3]"
    if image.ndim == 3 and shape[0] == 3:
        return "Put the channels last: image.transpose(1, 2, 0)"
    return "Give height, width and three channels, in this order"


def _dtype_problem(image: np.ndarray) -> str | None:
    if image.dtype == np.uint8:
        return None
    if image.dtype == bool:
        return "For black and white, convert: image.astype(numpy.uint8) * 255"
    if image.dtype == np.uint16:
        return (
            "Scale the values to 0 … 255, for those of full 16 bits with "
            "(image >> 8).astype(numpy.uint8)"
        )
    if image.dtype.kind == "f":
        return (
            "Convert values of 0 to 1: (image * 255).round().astype(numpy.uint8); values of 0 to "
            "255: image.round().astype(numpy.uint8)"
        )
    return "Convert values of 0 to 255: image.astype(numpy.uint8)"
