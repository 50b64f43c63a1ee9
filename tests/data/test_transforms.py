"""Geometry of the transforms, compared with values computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.transform_script import DO, SKIP, keep_size, picture, run, save
from PIL import Image

from onenet.data.images import read_image, resize, shortest_edge_size
from onenet.data.transforms import TestTransform, TrainTransform
from onenet.errors import DatasetError

# -- size of the shortest edge ---------------------------------------------------------------


@pytest.mark.parametrize(
    "height, width, short, max_size, expected",
    [
        (480, 640, 240, None, (240, 320)),
        (640, 480, 240, None, (320, 240)),
        (100, 100, 512, 853, (512, 512)),
        (426, 640, 512, 853, (512, 769)),  # 512 / 426 * 640 = 769.2
        (426, 640, 800, 1000, (666, 1000)),  # 426 * 1000 / 640 = 665.6
        (100, 1000, 512, 853, (85, 853)),  # the limit decides: 85.3
        (4, 10, 3, None, (3, 8)),  # 7.5 is rounded up
        (4, 6, 3, None, (3, 5)),  # 4.5 too: not to the even number
        (480, 640, 480, 640, (480, 640)),
        (1, 3000, 512, 853, (1, 853)),  # 0.28 px, but at least 1
        (3000, 1, 512, 853, (853, 1)),
    ],
)
def test_shortest_edge_size(height, width, short, max_size, expected):
    assert shortest_edge_size(height, width, short, max_size) == expected


def test_resize_to_half_averages_with_pillows_filter():
    image = np.zeros((2, 2, 3), dtype=np.uint8)
    image[0] = 100
    small = resize(image, (1, 2))
    assert small.shape == (1, 2, 3) and small.dtype == np.uint8
    # Scaled by 1/2, the triangle filter reaches 2 px: both rows weigh the same.
    assert (small == 50).all()


def test_resize_takes_height_first_and_any_strides():
    image = picture(8, 6)
    assert resize(image, (4, 9)).shape == (4, 9, 3)
    mirrored = resize(image[:, ::-1, ::-1], (4, 9))
    assert (mirrored == resize(np.ascontiguousarray(image[:, ::-1, ::-1]), (4, 9))).all()


# -- training ---------------------------------------------------------------------------------


def test_nothing_happens_without_flip_crop_and_resize():
    image = picture(20, 30)
    out, boxes, labels = run(keep_size(), image, [[1, 2, 3, 4]], 0)
    assert (out == image).all() and boxes.tolist() == [[1, 2, 3, 4]] and labels.tolist() == [0]
    assert boxes.dtype == np.float32 and labels.dtype == np.int64


@pytest.mark.parametrize("flip, axis", [("horizontal", 1), ("vertical", 0)])
def test_flip(flip, axis):
    image = picture(20, 30)
    out, boxes, _ = run(keep_size(flip=flip), image, [[1, 2, 11, 7]], DO, 0)
    assert (out == np.flip(image, axis)).all()
    assert boxes.tolist() == [[19, 2, 29, 7] if axis else [1, 13, 11, 18]]
    out, boxes, _ = run(keep_size(flip=flip), image, [[1, 2, 11, 7]], SKIP, 0)
    assert (out == image).all() and boxes.tolist() == [[1, 2, 11, 7]]


def test_no_objects_is_ordinary():
    transform = TrainTransform(min_sizes=(10,), max_size=99, crop=("absolute", (5, 5)))
    image, boxes, labels = run(transform, picture(20, 30), [], DO, DO, 0, 0, 0, 0)
    assert image.shape == (10, 10, 3) and boxes.shape == (0, 4) and labels.shape == (0,)


def test_resize_scales_each_axis_by_its_rounded_size():
    transform = keep_size(min_sizes=(6, 3))
    image, boxes, _ = run(transform, picture(4, 10), [[0, 0, 10, 4], [5, 2, 7, 3]], 1)
    assert image.shape == (3, 8, 3)
    assert boxes.tolist() == [[0, 0, 8, 3], [4, 1.5, np.float32(5.6), 2.25]]


def test_max_size_limits_the_longest_edge():
    image, boxes, _ = run(
        keep_size(min_sizes=(100,), max_size=40), picture(10, 20), [[0, 0, 20, 10]], 0
    )
    assert image.shape == (20, 40, 3) and boxes.tolist() == [[0, 0, 40, 20]]


def test_range_includes_both_ends():
    transform = keep_size(min_sizes=(5, 9), sampling="range")
    assert run(transform, picture(20, 20), [], 5)[0].shape == (5, 5, 3)
    assert run(transform, picture(20, 20), [], 9)[0].shape == (9, 9, 3)


def test_boxes_are_clipped_and_dropped_with_their_labels():
    boxes = [
        [-5, -5, 10, 10],  # clipped
        [30, 5, 40, 10],  # outside, touching the right edge
        [5, 5, 5, 9],  # no width
        [5, 5, 5 + 9e-6, 9],  # not more than 1e-5 px wide
        [25, 15, 99, 99],
    ]
    _, kept, labels = run(keep_size(), picture(20, 30), boxes, 0)
    assert kept.tolist() == [[0, 0, 10, 10], [25, 15, 30, 20]]
    assert labels.tolist() == [0, 4]


def test_crop_comes_after_flip_and_before_the_last_resize():
    image = picture(100, 200)
    transform = TrainTransform(min_sizes=(30,), max_size=999, crop=("absolute", (60, 120)))
    # Flip; resize to 500 x 1000 (choice 1); crop 60 x 120 at (top 40, left 300); resize to 30 x 60.
    out, boxes, labels = run(
        transform, image, [[132, 10, 136, 12], [0, 0, 9, 9]], DO, DO, 1, 40, 300, 0
    )
    expected = resize(resize(image[:, ::-1], (500, 1000))[40:100, 300:420], (30, 60))
    assert (out == expected).all()
    # x: 200 - 136 = 64 -> 320 -> 20 -> 10; 200 - 132 = 68 -> 340 -> 40 -> 20
    # y: 10 -> 50 -> 10 -> 5; 12 -> 60 -> 20 -> 10
    assert boxes.tolist() == [[10, 5, 20, 10]] and labels.tolist() == [0]


def test_half_of_the_images_are_not_cropped():
    transform = keep_size(crop=("absolute", (5, 5)))
    image = picture(20, 30)
    assert (run(transform, image, [], SKIP, 0)[0] == image).all()


@pytest.mark.parametrize(
    "kind, size, draws, expected",
    [
        # The image is 400 x 800 px when it is cropped (choice 0).
        ("absolute", (300, 500), (100, 300), (300, 500)),
        ("absolute", (500, 500), (0, 300), (400, 500)),
        ("absolute_range", (384, 600), (384, 600, 16, 200), (384, 600)),
        ("absolute_range", (384, 600), (400, 384, 0, 416), (400, 384)),
        ("absolute_range", (500, 600), (400, 500, 0, 0), (400, 500)),
        ("relative", (0.5, 0.25), (200, 600), (200, 200)),
        ("relative", (1, 1), (0, 0), (400, 800)),
        ("relative", (0.001, 0.0001), (399, 799), (1, 1)),
        ("relative_range", (0.5, 0.5), (0.5, 0.0, 100, 400), (300, 400)),
        ("relative_range", (1.0, 0.5), (0.9, 0.25, 0, 300), (400, 500)),
    ],
)
def test_crop_sizes(kind, size, draws, expected):
    image = picture(20, 40)
    out, boxes, _ = run(keep_size(crop=(kind, size)), image, [[0, 0, 40, 20]], DO, 0, *draws, 0)
    top, left = draws[-2:]
    height, width = expected
    assert (out == resize(image, (400, 800))[top : top + height, left : left + width]).all()
    assert boxes.tolist() == [[0, 0, width, height]]


def test_real_chance_stays_inside_the_image_and_depends_on_the_seed_alone():
    transform = TrainTransform(
        min_sizes=(20, 40), max_size=60, sampling="range", crop=("relative_range", (0.3, 0.3))
    )
    image, boxes = picture(30, 50), np.array([[5, 5, 45, 25]], dtype=np.float32)
    shapes = set()
    for seed in range(20):
        first, second = (
            transform(image, boxes, np.array([3]), np.random.default_rng(seed)) for _ in range(2)
        )
        for a, b in zip(first, second, strict=True):
            assert (a == b).all()
        height, width = first[0].shape[:2]
        assert (first[1] >= 0).all() and (first[1] <= [width, height, width, height]).all()
        assert len(first[1]) == len(first[2])
        shapes.add((height, width))
    assert len(shapes) > 10
    assert boxes.tolist() == [[5, 5, 45, 25]]  # the caller's boxes do not change


@pytest.mark.parametrize(
    "kwargs, says",
    [
        ({"sampling": "all"}, "MIN_SIZE_TRAIN_SAMPLING must be one of .*'all'"),
        ({"flip": "both"}, "RANDOM_FLIP must be one of .*'both'"),
        ({"min_sizes": ()}, "MIN_SIZE_TRAIN must hold"),
        ({"min_sizes": (-1,)}, "MIN_SIZE_TRAIN must hold"),
        ({"min_sizes": (1, 2, 3), "sampling": "range"}, "MIN_SIZE_TRAIN must be .least, most."),
        ({"min_sizes": (3, 2), "sampling": "range"}, "MIN_SIZE_TRAIN must be .least, most."),
        ({"max_size": 0}, "MAX_SIZE_TRAIN must be at least 1"),
        ({"crop": ("round", (1, 1))}, "CROP.TYPE must be one of .*'round'"),
        ({"crop": ("relative", (0.5, 1.5))}, "CROP.SIZE must be two fractions .*1.5"),
        ({"crop": ("relative_range", (0, 1))}, "CROP.SIZE must be two fractions"),
        ({"crop": ("absolute", (0.9, 0.9))}, "CROP.SIZE must be two whole numbers"),
        ({"crop": ("absolute", (5,))}, "CROP.SIZE must be two whole numbers"),
        ({"crop": ("absolute_range", (600, 384))}, "CROP.SIZE must be .least, most. px"),
    ],
)
def test_bad_settings_are_named(kwargs, says):
    with pytest.raises(ValueError, match=says):
        keep_size(**kwargs)


# -- testing ---------------------------------------------------------------------------------


def test_test_transform():
    image = picture(48, 64)
    assert (TestTransform(24, 100)(image) == resize(image, (24, 32))).all()
    assert TestTransform(48, 32)(image).shape == (24, 32, 3)
    assert TestTransform(0, 10)(image) is image


@pytest.mark.parametrize("sizes, says", [((-1, 10), "MIN_SIZE_TEST"), ((10, 0), "MAX_SIZE_TEST")])
def test_test_transform_bad_settings(sizes, says):
    with pytest.raises(ValueError, match=says):
        TestTransform(*sizes)


# -- reading ---------------------------------------------------------------------------------


def test_channel_order(tmp_path):
    pixels = picture(5, 7)
    path = save(tmp_path / "a.png", pixels)
    assert (read_image(path, "RGB") == pixels).all()
    assert (read_image(path, "BGR") == pixels[:, :, ::-1]).all()


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "I;16", "CMYK"])
def test_any_mode_becomes_rgb(tmp_path, mode):
    path = tmp_path / ("a.tif" if mode in ("CMYK", "I;16") else "a.png")
    gray = np.full((4, 6), 255, dtype=np.uint8)
    if mode == "I;16":
        Image.fromarray(gray.astype(np.uint16)).save(path)
    else:
        Image.fromarray(gray).convert("RGB").convert(mode).save(path)
    image = read_image(str(path))
    assert image.shape == (4, 6, 3) and image.dtype == np.uint8 and (image == 255).all()


def test_missing_image(tmp_path):
    path = str(tmp_path / "gone.jpg")
    with pytest.raises(DatasetError, match="does not exist") as error:
        read_image(path)
    assert path in str(error.value)


@pytest.mark.parametrize("damage", ["empty", "text", "truncated", "folder"])
def test_unreadable_image(tmp_path, damage):
    path = tmp_path / "a.jpg"
    if damage == "folder":
        path.mkdir()
    else:
        Image.fromarray(picture(50, 50)).save(path)
        content = path.read_bytes()
        path.write_bytes({"empty": b"", "text": b"hello", "truncated": content[:900]}[damage])
    with pytest.raises(DatasetError, match="cannot be read") as error:
        read_image(str(path))
    assert str(path) in str(error.value)


def test_unknown_format(tmp_path):
    with pytest.raises(ValueError, match="INPUT.FORMAT .*'YUV'"):
        read_image(str(tmp_path / "a.jpg"), "YUV")
