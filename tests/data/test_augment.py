"""Augmentations one by one: boxes stay on their objects, and colours are those of RGB."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from onenet.data.augment.build import build_augmentation
from onenet.data.augment.item import Item, joined

COLOURS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)
SHIFTS = ("flip", "scale_jitter", "crop", "affine", "mosaic")
ALL = [
    "flip(probability=1)",
    "flip(vertical, probability=1)",
    "scale_jitter",
    "crop(0.4, probability=1)",
    "affine(30, 10, probability=1)",
    "photometric(1, 1, 1, 0.5, probability=1)",
    "grey(probability=1)",
    "blur(probability=1)",
    "jpeg(probability=1)",
    "mosaic(probability=1)",
    "mixup(probability=1)",
]
MOVING = [one for one in ALL if one.split("(")[0] in SHIFTS]


def drawn(size: tuple[int, int], *boxes: tuple[int, int, int, int], ids: int = 0) -> Item:
    """Grey with a rectangle of another colour for each box, which is also its label and id."""
    image = np.full((*size, 3), 128, np.uint8)
    for colour, (x1, y1, x2, y2) in zip(COLOURS, boxes, strict=False):
        image[y1:y2, x1:x2] = colour
    labels = torch.arange(len(boxes))
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Item(image, corners, labels, {"id": labels + ids})


def example() -> Item:
    return drawn((120, 160), (10, 20, 50, 60), (70, 10, 100, 90), (110, 70, 150, 110))


def other(random: np.random.Generator) -> Item:
    """What draws give: an image without objects, so that the colours are the first one's."""
    return drawn((int(random.integers(40, 200)), int(random.integers(40, 200))))


def seen(image: np.ndarray, colour: np.ndarray) -> tuple[np.ndarray, int]:
    """xyxy px around the pixels of about a colour, and their number."""
    near = np.abs(image.astype(int) - colour).max(axis=2) < 60
    y, x = np.nonzero(near)
    if not len(x):
        return np.zeros(4), 0
    return np.array([x.min(), y.min(), x.max() + 1, y.max() + 1]), len(x)


@pytest.mark.parametrize("text", MOVING)
def test_boxes_lie_around_what_is_seen_of_their_objects(text):
    augmentation = build_augmentation(text)
    kept, lost = 0, 0
    for seed in range(40):
        item = augmentation(example(), np.random.default_rng(seed), other)
        assert item.image.dtype == np.uint8 and item.boxes.dtype == torch.float32
        assert item.extras["id"].tolist() == item.labels.tolist()
        found = dict(zip(item.labels.tolist(), item.boxes.numpy(), strict=True))
        for label, colour in enumerate(COLOURS):
            around, pixels = seen(item.image, colour)
            if label in found:
                assert np.abs(found[label] - around).max() < 2.5
                kept += 1
            else:  # only slivers are no targets
                whole = 1600 if label != 1 else 2400
                assert pixels < 0.3 * whole * 4  # enlarged by 2 at most
                lost += 1
    assert kept > 40 and (lost > 0) == (text.split("(")[0] not in ("flip", "affine"))


def test_flips_are_exact():
    item = example()
    left = build_augmentation("flip(probability=1)")(item, np.random.default_rng(0), other)
    assert (left.image == item.image[:, ::-1]).all()
    assert left.boxes[0].tolist() == [110, 20, 150, 60]
    down = build_augmentation("flip(vertical, probability=1)")(
        item, np.random.default_rng(0), other
    )
    assert (down.image == item.image[::-1]).all()
    assert down.boxes[0].tolist() == [10, 60, 50, 100]


def test_only_the_crop_changes_the_shape():
    for text in ALL:
        item = build_augmentation(text)(example(), np.random.default_rng(3), other)
        height, width = item.size
        same = abs(width / height - 160 / 120) < 0.05
        assert same == (not text.startswith("crop")), text


def test_scale_jitter_halves_as_often_as_it_doubles():
    jitter = build_augmentation("scale_jitter(0.5, 2, min_visible=1)")
    items = [jitter(example(), np.random.default_rng(seed), other) for seed in range(300)]
    smaller = sum(item.size == (120, 160) for item in items)
    assert 120 < smaller < 180
    assert min(min(item.size) for item in items) == 60


@pytest.mark.parametrize("least", [0.0, 0.5, 1.0])
def test_what_is_seen_too_little_is_no_target(least):
    item = drawn((100, 100), (0, 0, 100, 40))
    shares = []
    for seed in range(50):
        part = item.window(np.random.default_rng(seed), (40, 100), least, resized=(80, 200))
        share = max(0, 40 - int((part.image[:, 0, 0] < 200).sum() / 2)) / 40
        assert (
            len(part.labels) == (share > 0 and share >= least - 0.02) or abs(share - least) < 0.03
        )
        shares.append(share)
    assert min(shares) < 0.2 and max(shares) > 0.5


def test_a_mosaic_holds_four_images_and_their_objects():
    colours = iter([*COLOURS[[1, 2]], np.array([255, 255, 0])])

    def draw(random: np.random.Generator) -> Item:
        image = np.broadcast_to(next(colours), (random.integers(30, 300), 90, 3)).astype(np.uint8)
        height, width = image.shape[:2]
        return replace(drawn((height, width), (0, 0, width, height), ids=7), image=image)

    item = drawn((120, 160), (0, 0, 160, 120))
    mosaic = build_augmentation("mosaic(probability=1, min_visible=0)")
    found = mosaic(item, np.random.default_rng(1), draw)
    assert found.size == (120, 160) and found.extras["id"].tolist() == [0, 7, 7, 7]
    corners = found.image[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners.tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]]
    x, y = found.boxes[0, 2:].tolist()
    assert found.boxes.tolist() == [
        [0, 0, x, y], [x, 0, 160, y], [0, y, x, 120], [x, y, 160, 120],
    ]  # fmt: skip
    assert 40 <= x <= 120 and 30 <= y <= 90


def test_objects_of_a_mosaic_have_half_their_size_or_more():
    square = drawn((200, 200), (80, 80, 120, 120))
    sides = []
    for seed in range(60):
        mosaic = build_augmentation("mosaic(probability=1, min_visible=1)")
        found = mosaic(square, np.random.default_rng(seed), lambda _: square)
        sides += (found.boxes[:, 2] - found.boxes[:, 0]).tolist()
    assert 19 <= min(sides) < 24 and 36 < max(sides) <= 41


def test_mixup_shows_the_objects_of_both():
    item, another = drawn((60, 80), (0, 0, 40, 60)), drawn((30, 40), (20, 0, 40, 30), ids=5)
    mixup = build_augmentation("mixup(probability=1)")
    found = mixup(item, np.random.default_rng(0), lambda _: another)
    assert found.extras["id"].tolist() == [0, 5]
    assert found.boxes.tolist() == [[0, 0, 40, 60], [40, 0, 80, 60]]
    left, right = found.image[30, 10, 0], found.image[30, 70, 0]
    assert 150 < left < 230 and 150 < right < 230 and left != right


def test_items_to_join_have_the_same_extras():
    with pytest.raises(ValueError, match="different extras"):
        joined(example().image, [example(), replace(example(), extras={})])


def test_colours_are_those_of_rgb():
    item = build_augmentation("grey(probability=1)")(example(), np.random.default_rng(0), other)
    assert [item.image[30, 20, 0], item.image[50, 80, 0], item.image[90, 120, 0]] == [76, 150, 29]
    blue = build_augmentation("photometric(0, 0, 0, 0.02, probability=1)")
    _, pixels = seen(blue(example(), np.random.default_rng(0), other).image, COLOURS[2])
    assert pixels == 1600


@pytest.mark.parametrize("text", ALL)
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (7, 2)])
def test_tiny_images_and_those_without_objects(text, size):
    augmentation = build_augmentation(text)
    for seed in range(3):
        item = augmentation(drawn(size), np.random.default_rng(seed), lambda _: drawn((1, 5)))
        assert (
            min(item.size) >= 1 and item.boxes.shape == (0, 4) and item.extras["id"].shape == (0,)
        )


@pytest.mark.parametrize("text", ALL)
def test_an_item_stays_unchanged_and_may_be_read_only(text):
    item = example()
    item.image.setflags(write=False)
    before = pickle.dumps(item)
    build_augmentation(text)(item, np.random.default_rng(0), other)
    assert pickle.dumps(item) == before


def test_boxes_as_read_are_clipped_to_their_image():
    boxes = np.array([[-5, 2, 8, 40], [20, 2, 30, 9], [0, 0, 9, 9]], np.float32)
    item = Item.of(np.zeros((10, 20, 3), np.uint8), boxes, np.array([3, 4, 5]))
    assert item.boxes.tolist() == [[0, 2, 8, 10], [0, 0, 9, 9]] and item.labels.tolist() == [3, 5]
