"""Pictures: boxes are where they belong, labels stay inside, and nothing is modified."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from onenet.structures import Detections, Targets
from onenet.visualization.boxes import (
    contact_sheet,
    draw_boxes,
    draw_comparison,
    draw_marked,
    enlargement,
)

NAMES = ["circle", "square", "a class with a rather long name"]
GREY = 90


def blank(height=240, width=320):
    return np.full((height, width, 3), GREY, np.uint8)


def changed(picture, before):
    """(H, W) bool."""
    return (picture != before).any(axis=2)


def extents(mask):
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [columns[0], rows[0], columns[-1], rows[-1]]


def test_lines_follow_the_box():
    image = blank()
    picture = draw_boxes(image, [[60, 80, 200, 180]], [0], NAMES)
    drawn = changed(picture, image)
    assert picture.shape == image.shape and picture.dtype == np.uint8
    assert drawn[80, 61:200].all() and drawn[180, 60:200].all()
    assert drawn[80:180, 60].all() and drawn[80:180, 200].all()
    assert not drawn[90:170, 70:190].any()  # its inside
    x1, y1, x2, y2 = extents(drawn)
    assert x1 >= 57 and x2 <= 203 and y2 <= 183
    assert 50 <= y1 <= 70  # the label is on top of it


def test_the_input_is_not_modified():
    image = blank()
    draw_boxes(image, [[60, 80, 200, 180]], [0], NAMES, [0.5])
    draw_boxes(image, np.zeros((0, 4)), [], NAMES)[:] = 0
    assert (image == GREY).all()


@pytest.mark.parametrize("scores", [None, torch.zeros(0)])
def test_no_boxes(scores):
    picture = draw_boxes(
        blank(), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), NAMES, scores
    )
    assert np.array_equal(picture, blank())


def test_tensors_and_arrays_are_alike():
    boxes, labels, scores = [[60.0, 80, 200, 180], [5, 5, 90, 60]], [2, 0], [0.25, 0.75]
    a = draw_boxes(blank(), boxes, labels, NAMES, scores)
    b = draw_boxes(blank(), *map(np.array, (boxes, labels)), NAMES, np.array(scores))
    c = draw_boxes(
        blank(), *map(torch.tensor, (boxes, labels)), NAMES, torch.tensor(scores).requires_grad_()
    )
    assert np.array_equal(a, b) and np.array_equal(a, c)


def test_a_read_only_image_with_flipped_channels():
    image = blank()[..., ::-1]
    image.flags.writeable = False
    assert draw_boxes(image, [[60, 80, 200, 180]], [0], NAMES).flags.writeable


@pytest.mark.parametrize(
    "box", [[0, 0, 60, 40], [260, 0, 320, 40], [0, 200, 60, 240], [290, 210, 320, 240]]
)
def test_labels_stay_inside(box):
    """At the border a label moves instead of being cut: all of its text is visible."""

    def text(b):
        image = blank()
        picture = draw_boxes(image, [b], [1], NAMES, [0.87])
        x1, y1, x2, y2 = b
        color = picture[(y1 + y2) // 2, min(x2, 319)]  # of its right line
        return ((picture != color).any(axis=2) & changed(picture, image)).sum()

    assert text([120, 100, 180, 140]) > 100
    assert text(box) == pytest.approx(text([120, 100, 180, 140]), rel=0.05)


def test_the_boxes_right_and_bottom_lines_are_seen_at_the_border():
    drawn = changed(draw_boxes(blank(), [[100, 100, 320, 240]], [0], NAMES), blank())
    assert drawn[-1, 100:].all() and drawn[100:, -1].all()


def test_a_long_name_fits_a_small_image():
    """The text shrinks until its end is inside."""
    names = ["W" * 24]
    picture = draw_boxes(blank(128, 128), [[30, 50, 100, 120]], [0], names, [1.0])
    text = (picture[:50] != picture[120, 60]).any(axis=2) & changed(picture[:50], blank(50, 128))
    x1, _, x2, _ = extents(text)
    assert 0 < x1 and x2 < 127 and x2 - x1 > 100


def test_labels_of_one_place_are_spread():
    same = [[100, 100, 200, 180]] * 2
    one = changed(draw_boxes(blank(), same[:1], [0], NAMES, [0.5]), blank()).sum()
    two = changed(draw_boxes(blank(), same, [0, 0], NAMES, [0.5, 0.6]), blank()).sum()
    assert two > one + 300


def test_the_best_is_on_top():
    boxes, box = [[60, 80, 200, 180]] * 2, (slice(180, 181), slice(100, 160))
    colors = [draw_boxes(blank(), boxes[:1], [k], NAMES)[box] for k in (0, 1)]
    first = draw_boxes(blank(), boxes, [0, 1], NAMES, [0.9, 0.4])
    second = draw_boxes(blank(), boxes, [0, 1], NAMES, [0.4, 0.9])
    assert np.array_equal(first[box], colors[0]) and np.array_equal(second[box], colors[1])


def test_a_class_keeps_its_color_and_has_its_own():
    def color(label, count):
        return tuple(
            draw_boxes(blank(), [[60, 80, 200, 180]], [label], ["x"] * count)[180, 130].tolist()
        )

    eighty = [color(k, 80) for k in range(80)]
    assert len(set(eighty)) == 80
    assert [color(k, 3) for k in range(3)] == eighty[:3]


def test_channels_are_rgb():
    """The first class is blue."""
    red, _, blue = draw_boxes(blank(), [[60, 80, 200, 180]], [0], NAMES)[180, 130].astype(int)
    assert blue > red + 100


def test_scale_enlarges_the_picture_and_the_boxes():
    image = blank(40, 60)
    image[:, :30] = 200
    picture = draw_boxes(image, [[20, 20, 50, 35]], [0], NAMES, scale=4)
    drawn = changed(picture, draw_boxes(image, [], [], NAMES, scale=4))
    assert picture.shape == (160, 240, 3)
    assert (picture[150, :100] == 200).all() and (picture[150, 130:] == GREY).all()
    assert drawn[140, 80:200].all() and drawn[80:140, 200].all()


@pytest.mark.parametrize(
    ("shape", "factor"), [((128, 128), 4), ((100, 200), 2), ((480, 640), 1), ((9000, 10), 1)]
)
def test_enlargement(shape, factor):
    assert enlargement(np.zeros((*shape, 3), np.uint8)) == factor


@pytest.mark.parametrize("shape", [(8, 8), (1, 400), (2000, 30)])
def test_extreme_sizes(shape):
    assert draw_boxes(blank(*shape), [[0, 0, 5, 5]], [0], NAMES, [0.5]).shape == (*shape, 3)


@pytest.mark.parametrize(
    ("image", "boxes", "labels", "scores", "message"),
    [
        (blank().astype(np.float32), [], [], None, "uint8 image, got float32"),
        (blank()[..., 0], [], [], None, r"\(240, 320\)"),
        (blank(), [[0, 0, 5, 5]], [], None, "1 boxes .* got 0 labels"),
        (blank(), [[0, 0, 5, 5]], [0], [0.1, 0.2], "2 scores"),
        (blank(), [[0, 0, 5, 5]], [3], None, "label 3 has no name: there are 3"),
        (blank(), [[0, 0, 5, 5]], [-1], None, "label -1"),
    ],
)
def test_errors(image, boxes, labels, scores, message):
    with pytest.raises(ValueError, match=message):
        draw_boxes(image, boxes, labels, NAMES, scores)


def test_contact_sheet_layout():
    images = [np.full((50, 100, 3), 10 * k, np.uint8) for k in range(5)]
    sheet = contact_sheet(images, columns=2, tile=100)
    assert sheet.shape == (3 * (50 + 8) + 8, 2 * (100 + 8) + 8, 3)
    for k in range(5):
        y, x = 8 + k // 2 * 58, 8 + k % 2 * 108
        assert (sheet[y : y + 50, x : x + 100] == 10 * k).all()
        assert (sheet[y - 1, x : x + 100] == 255).all() and (sheet[y : y + 50, x - 1] == 255).all()
    assert (sheet[-58:, 116:] == 255).all()  # the sixth tile


def test_contact_sheet_fits_and_centres():
    tall, wide = np.zeros((200, 100, 3), np.uint8), np.zeros((20, 40, 3), np.uint8)
    sheet = contact_sheet([tall, wide], tile=100)
    assert sheet.shape == (116, 224, 3)
    dark = (sheet == 0).all(axis=2)
    assert extents(dark[:, :112]) == [33, 8, 82, 107]
    assert extents(dark[:, 112:]) == [4, 33, 103, 82]


def test_contact_sheet_titles_are_above_the_images():
    image = np.full((50, 100, 3), 128, np.uint8)
    plain = contact_sheet([image], tile=100)
    titled = contact_sheet([image], tile=100, titles=["a title too long for a hundred pixels"])
    assert titled.shape[0] > plain.shape[0]
    assert np.array_equal(titled[-58:], plain[-58:])
    x1, y1, x2, y2 = extents((titled[:-58] < 200).any(axis=2))
    assert 8 <= x1 and 60 < x2 - x1 and x2 < 108


def test_contact_sheet_errors():
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([])
    with pytest.raises(ValueError, match="2 images.*got 1"):
        contact_sheet([blank(), blank()], titles=["one"])


def test_comparison_shows_both():
    box = torch.tensor([[60.0, 80, 200, 180]])
    targets = Targets(box, torch.tensor([0]), (240, 320))
    nothing = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    something = Detections(box, torch.tensor([0.5]), torch.tensor([0]))
    a = draw_comparison(blank(), nothing, targets, NAMES)
    b = draw_comparison(blank(), something, targets, NAMES)
    half = a.shape[1] // 2
    assert a.shape == b.shape and a.shape[1] > 2 * 320
    assert np.array_equal(a[:, :half], b[:, :half])
    picture = draw_boxes(blank(), box, [0], NAMES)
    assert np.array_equal(a[-248:-8, 8:328], picture)
    assert np.array_equal(b[-248:-8, -328:-8], draw_boxes(blank(), box, [0], NAMES, [0.5]))
    assert draw_comparison(blank(64, 64), nothing, targets, NAMES, scale=2).shape[1] == 2 * 136 + 8
    assert draw_comparison(blank(64, 64), nothing, targets, NAMES).shape[1] == 2 * 520 + 8


def test_boxes_in_colours_of_their_own():
    image = np.full((60, 80, 3), 90, np.uint8)
    boxes = np.array([[5.0, 20, 30, 50], [40, 20, 70, 50]])
    picture = draw_marked(image, boxes, ["", ""], ["#d1495b", "#2e9e5b"], scale=2)
    assert picture.shape == (120, 160, 3)
    assert picture[70, 10].tolist() == [0xD1, 0x49, 0x5B]  # the left line of the first box
    assert picture[70, 80].tolist() == [0x2E, 0x9E, 0x5B]
    with_text = draw_marked(image, boxes, ["a", ""], ["#d1495b", "#2e9e5b"], scale=2)
    assert (with_text != picture).any() and (with_text[:, 80:] == picture[:, 80:]).all()
    assert np.array_equal(draw_marked(image, np.empty((0, 4)), [], []), image)
