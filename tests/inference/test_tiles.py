"""Detecting in tiles: where they lie, and that every object is counted once, however it is cut."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import find_objects

from onenet.deploy.runtime import ArrayDetections
from onenet.errors import DatasetError
from onenet.inference.tiles import TiledPrediction, tile_places

TILE, OVERLAP = 640, 0.2  # 128 px
SIZE = (3000, 4000)  # (H, W) px


class Eyes(TiledPrediction):
    """Sees exactly what a tile shows of drawn objects: red and green values are label and number.

    It misses an object if a tile shows only a thin strip of it, as detectors do.
    """

    images_per_batch = 4

    def __init__(self, thinnest: int = 1, noise: float = 0) -> None:
        self.thinnest, self.noise, self.random = thinnest, noise, np.random.default_rng(0)
        self.seen = 0
        self.batches: list[int] = []

    def predict_batch(self, images):
        assert 0 < len(images) <= self.images_per_batch
        self.batches.append(len(images))
        return [self._see(image) for image in images]

    def _see(self, image):
        boxes, labels = [], []
        for place in filter(None, find_objects(image[..., 1].astype(int) * 256 + image[..., 2])):
            rows, columns = place
            box = [columns.start, rows.start, columns.stop, rows.stop]
            if min(box[2] - box[0], box[3] - box[1]) >= self.thinnest:
                boxes.append(box)
                labels.append(int(image[(*place, 0)].max()))
        self.seen += len(boxes)
        boxes = np.array(boxes, np.float32).reshape(-1, 4)
        boxes += self.random.normal(0, 1, boxes.shape).astype(np.float32) * self.noise
        height, width = image.shape[:2]
        boxes = boxes.clip(0, np.array([width, height] * 2, np.float32))
        scores = np.linspace(0.9, 0.5, len(boxes), dtype=np.float32)
        return ArrayDetections(boxes, scores, np.array(labels, np.int64))


def draw(*objects, size=SIZE):
    """An image of (x1, y1, x2, y2, label) rectangles."""
    image = np.zeros((*size, 3), np.uint8)
    for number, (x1, y1, x2, y2, label) in enumerate(objects, start=1):
        image[y1:y2, x1:x2] = label, number // 256, number % 256
    return image


def rows(found):
    return sorted(
        (*map(int, box), int(label)) for box, label in zip(found.boxes, found.labels, strict=True)
    )


@pytest.mark.parametrize(
    ("size", "tile", "overlap", "expected"),
    [
        ((100, 100), 100, 0.2, [(0, 0, 100, 100)]),
        ((50, 180), 100, 0.2, [(0, 0, 100, 50), (80, 0, 180, 50)]),
        ((50, 190), 100, 0.2, [(0, 0, 100, 50), (80, 0, 180, 50), (90, 0, 190, 50)]),
        ((200, 100), 100, 0.0, [(0, 0, 100, 100), (0, 100, 100, 200)]),
    ],
)
def test_places(size, tile, overlap, expected):
    assert tile_places(size, tile, overlap) == expected


def test_tiles_cover_the_image_overlap_and_have_one_size():
    places = tile_places(SIZE, TILE, OVERLAP)
    seen = np.zeros(SIZE, bool)
    for x1, y1, x2, y2 in places:
        assert (x2 - x1, y2 - y1) == (TILE, TILE)
        seen[y1:y2, x1:x2] = True
    assert seen.all() and len(places) == 48
    for axis in (0, 1):
        starts = np.unique([place[axis] for place in places])
        assert np.diff(starts).max() <= TILE - 128


# Of tiles of 640 px every 512 px: the overlaps are 512…640, 1024…1152, ….
CASES = {
    "within a tile": [(100, 100, 180, 160, 1)],
    "within an overlap": [(530, 100, 620, 160, 1)],
    "across the border of one tile": [(600, 100, 700, 160, 1)],
    "across both borders of an overlap": [(480, 100, 700, 160, 1)],
    "ends at the border": [(560, 100, 640, 160, 1)],
    "at the crossing of four tiles": [(500, 500, 660, 660, 2)],
    "in the corner of four tiles": [(530, 530, 600, 600, 2)],
    "a piece of it at the crossing": [(635, 635, 720, 720, 2)],
    "larger than the overlap, both ways": [(300, 300, 900, 900, 3)],
    "larger than a tile": [(200, 100, 1900, 300, 3)],
    "twins side by side on a seam": [(540, 100, 600, 160, 1), (600, 100, 660, 160, 1)],
    "a row of twins": [(x, 700, x + 40, 760, 1) for x in range(420, 820, 40)],
    "twins at a crossing": [
        (x, y, x + 50, y + 50, 1) for x in (540, 590, 640) for y in (540, 590, 640)
    ],
    "two classes in one place": [(560, 100, 700, 160, 1), (560, 160, 700, 220, 2)],
    "a small one before a large one of its class": [
        (450, 100, 900, 400, 1),
        (600, 200, 660, 260, 1),
    ],
    "at the image's right and lower border": [(3900, 2900, 4000, 3000, 1)],
    "a thin piece in the neighbour": [(400, 100, 514, 160, 1), (637, 300, 760, 360, 1)],
}


@pytest.mark.parametrize("case", CASES)
def test_every_object_is_found_once(case):
    objects = CASES[case]
    found = Eyes().predict_tiles(draw(*objects), TILE, OVERLAP)
    assert rows(found) == sorted(objects)
    assert (found.parts >= 1).all() and np.all(np.diff(found.scores) <= 0)


def scattered(count, rng):
    """Objects of 10 to 200 px that touch no other, all over the image and dense."""
    taken, objects = np.zeros(SIZE, bool), []
    while len(objects) < count:
        width, height = rng.integers(10, 200, 2)
        x, y = rng.integers(0, SIZE[1] - width), rng.integers(0, SIZE[0] - height)
        if not taken[y : y + height, x : x + width].any():
            taken[y : y + height, x : x + width] = True
            objects.append((x, y, x + width, y + height, int(rng.integers(1, 4))))
    return objects


@pytest.mark.parametrize(("thinnest", "noise"), [(1, 0), (8, 1)])
def test_a_large_image_of_four_hundred_objects(thinnest, noise):
    """Each is counted once, also where boxes are a few px off and thin pieces are missed."""
    objects = scattered(400, np.random.default_rng(5))
    eyes = Eyes(thinnest, noise)
    found = eyes.predict_tiles(draw(*objects), TILE, OVERLAP)
    if noise:
        assert len(found) == 400
        counts = [np.bincount([row[4] for row in one]) for one in (rows(found), objects)]
        assert counts[0].tolist() == counts[1].tolist()
    else:
        assert rows(found) == sorted(objects)
    # Every box of a tile is one of the objects found, or went into one.
    assert found.merged == eyes.seen - 400 > 300
    assert eyes.batches == [4] * 12


def test_one_tile_is_the_image_itself():
    image = draw((10, 10, 50, 60, 1), (20, 200, 90, 260, 2), size=(300, 400))
    whole, eyes = Eyes().predict_batch([image])[0], Eyes()
    for tiles in (0, 400, 1000):
        found = eyes.predict_tiles(image, tiles)
        assert all((getattr(found, n) == getattr(whole, n)).all() for n in ("boxes", "scores"))
        assert found.merged == 0
    assert eyes.batches == [1, 1, 1]


def test_boxes_of_one_tile_are_never_merged():
    class Repeats(Eyes):
        def _see(self, image):
            found = super()._see(image)
            return ArrayDetections(
                *(np.concatenate((v, v)) for v in (found.boxes, found.scores, found.labels))
            )

    twice = Repeats().predict_tiles(draw((560, 100, 620, 160, 1), (90, 90, 200, 200, 1)), TILE)
    assert rows(twice) == sorted([(560, 100, 620, 160, 1), (90, 90, 200, 200, 1)] * 2)


def test_the_whole_box_wins_over_pieces_and_the_best_score_is_kept():
    class Sure(Eyes):
        def _see(self, image):
            found = super()._see(image)
            sizes = (found.boxes[:, 2:] - found.boxes[:, :2]).prod(axis=1)
            scores = np.where(sizes < 100 * 60, np.float32(0.95), np.float32(0.6))
            return ArrayDetections(found.boxes, scores, found.labels)

    found = Sure().predict_tiles(draw((560, 100, 700, 160, 1)), TILE)  # 80 px of it in the first
    assert rows(found) == [(560, 100, 700, 160, 1)] and found.parts.tolist() == [2]
    assert found.scores[0] == np.float32(0.95)


@pytest.mark.parametrize(
    ("tiles", "overlap", "told"),
    [(-1, 0.2, "tiles must be 0 or"), (31, 0.2, "got 31"), (2.5, 0.2, "got 2.5"),
     (64, 1, "between 0 and 0.9, got 1"), (64, -0.1, "got -0.1")],
)  # fmt: skip
def test_no_such_tiles(tiles, overlap, told):
    with pytest.raises(DatasetError, match=told):
        Eyes().predict_tiles(draw(size=(100, 100)), tiles, overlap)
