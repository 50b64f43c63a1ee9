"""Images that a program gives to a predictor: one check, and what to do about each mistake."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers.transform_script import picture
from PIL import Image

from onenet.data.arrays import check_images
from onenet.errors import DatasetError, OneNetError

PIXELS = picture(6, 8)

# What is given, what the error calls it, and what it advises.
WRONG: dict[str, tuple[Any, str, str]] = {
    "none": (None, "is None", "cv2.imread returns None for a file that it cannot read"),
    "path": ("a.jpg", "is 'a.jpg'", "Read a file with onenet.read_image(path)"),
    "pillow": (
        Image.fromarray(PIXELS),
        "is PIL.Image.Image",
        'numpy.asarray(image.convert("RGB"))',
    ),
    "tensor": (torch.zeros(3, 6, 8), "is torch.Tensor", "image.permute(1, 2, 0).cpu().numpy()"),
    "list": (PIXELS.tolist(), "is list", "onenet.read_image"),
    "grey": (PIXELS[..., 0], "is uint8 of shape (6, 8)", "numpy.dstack([image] * 3)"),
    "one-channel": (PIXELS[..., :1], "uint8 of shape (6, 8, 1)", "numpy.dstack([image] * 3)"),
    "rgba": (np.zeros((6, 8, 4), np.uint8), "shape (6, 8, 4)", "image[..., :3]"),
    "channels-first": (PIXELS.transpose(2, 0, 1), "shape (3, 6, 8)", "image.transpose(1, 2, 0)"),
    "batch": (PIXELS[None], "shape (1, 6, 8, 3)", "predict_batch(list(images))"),
    "vector": (PIXELS.ravel(), "shape (144,)", "height, width and three channels"),
    "two-channels": (PIXELS[..., :2], "shape (6, 8, 2)", "height, width and three channels"),
    "no-height": (PIXELS[:0], "shape (0, 8, 3)", "It holds no pixels"),
    "no-width": (PIXELS[:, :0], "shape (6, 0, 3)", "It holds no pixels"),
    "float": (PIXELS / 255, "is float64", "(image * 255).round().astype(numpy.uint8)"),
    "float16": (PIXELS.astype(np.float16), "is float16", "image.round().astype(numpy.uint8)"),
    "16-bit": (PIXELS.astype(np.uint16), "is uint16", "(image >> 8).astype(numpy.uint8)"),
    "signed": (PIXELS.astype(np.int64), "is int64", "image.astype(numpy.uint8)"),
    "bool": (PIXELS > 9, "is bool", "image.astype(numpy.uint8) * 255"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_refused(kind):
    image, called, advice = WRONG[kind]
    with pytest.raises(DatasetError) as error:
        check_images([image])
    text = str(error.value)
    assert text.startswith("Expected a NumPy array (H, W, 3) uint8 RGB, but the image is ")
    assert called in text and advice in text


@pytest.mark.parametrize("kind", ["grey", "one-channel", "rgba", "channels-first", "float", "bool"])
def test_the_advice_works(kind):
    image, _, advice = WRONG[kind]
    check_images([eval(advice, {"numpy": np, "image": image})])


def test_the_image_is_counted():
    with pytest.raises(DatasetError, match="image 2 of 3 is None"):
        check_images([PIXELS, None, PIXELS])


@pytest.mark.parametrize(
    ("images", "told"),
    [
        (PIXELS, r"one array of shape \(6, 8, 3\): give predict_batch\(\[image\]\)"),
        (None, "several images, got None"),
        ("a.jpg", "several images, got 'a.jpg'"),
        (Image.fromarray(PIXELS), "several images, got PIL.Image.Image"),
    ],
)
def test_one_image_in_place_of_several(images, told):
    with pytest.raises(DatasetError, match=told):
        check_images(images)


def test_what_may_be_given():
    assert check_images([]) == []
    (turned,) = check_images([PIXELS[::-1, :, ::-1]])  # a view, such as cv2's pixels as RGB
    assert turned.shape == (6, 8, 3)
    assert len(check_images(np.stack([PIXELS] * 2))) == 2
    assert len(check_images(iter([PIXELS] * 2))) == 2


def test_callers_can_catch_it():
    assert issubclass(DatasetError, OneNetError) and issubclass(DatasetError, ValueError)
