"""Detecting in tiles of a large image; needs NumPy, not torch.

Tiles overlap, so a neighbour sees whole, or at least sees more of, what a tile's border cuts. Boxes
of one tile are never compared: OneNet needs no NMS. Boxes of two tiles are one object if they have
the same class and agree where both tiles look.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from typing import Any

import numpy as np

from onenet.errors import DatasetError

OVERLAP = 0.2  # share of a tile's side, at least
_AGREE = 0.5  # least IoU, within the overlap of two tiles, of boxes of one object
_INSIDE = 0.7  # least share of a cut piece that lies in the box of the same object
_BORDER = 0.01  # share of a tile's side within which a box touches the border


@dataclass(frozen=True)
class TiledDetections:
    """The detections in one image, merged across the seams of its tiles, best score first.

    Attributes:
        boxes: (n, 4) float32 xyxy px of the image.
        scores: (n,) float32 in [0, 1].
        labels: (n,) int64 in [0, K).
        parts: (n,) int64, how many boxes, each of another tile, became this one; 1: not merged.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    parts: np.ndarray

    @property
    def merged(self) -> int:
        """How many boxes went into others."""
        return int((self.parts - 1).sum())

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, keep: np.ndarray | slice) -> TiledDetections:
        """The detections that a mask, an index array or a slice selects."""
        return TiledDetections(*(getattr(self, f.name)[keep] for f in fields(self)))


class TiledPrediction:
    """What a predictor with ``predict_batch`` and ``images_per_batch`` can do with large images.

    Attributes:
        tiles: px, side of the tiles that a prediction without its own uses; 0: the whole image.
        tile_overlap: share of a tile's side that neighbours have in common, at least.
    """

    tiles = 0
    tile_overlap = OVERLAP

    def predict_tiles(
        self, image: np.ndarray, tiles: int | None = None, overlap: float | None = None
    ) -> TiledDetections:
        """Detect objects in one image, tile by tile; a small image is one tile, and is itself.

        Each tile is resized as an image of its size would be, and gives at most as many detections.

        Args:
            image: (H, W, 3) uint8 RGB.
            tiles: px of the image, side of a tile; 0: the whole image. ``None``: ``self.tiles``.
            overlap: share of a tile's side; ``None``: ``self.tile_overlap``.

        Raises:
            DatasetError: the image is something else, or there are no such tiles.
        """
        tiles = self.tiles if tiles is None else tiles
        overlap = self.tile_overlap if overlap is None else overlap
        check_tiles(tiles, overlap)
        size = getattr(image, "shape", ())[:2]
        places = tile_places(size, tiles, overlap) if tiles and len(size) == 2 else []
        if len(places) < 2:
            return merge_tiles(self.predict_batch([image]), [], size, tiles)
        crops = (image[y1:y2, x1:x2] for x1, y1, x2, y2 in places)
        found: list[Any] = []
        while batch := list(islice(crops, max(1, self.images_per_batch))):
            found += self.predict_batch(batch)
        return merge_tiles(found, places, size, tiles)


def whole_images(cfg: Any) -> Any:
    """The config of a loader that reads images one by one and does not resize them."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.INPUT.MIN_SIZE_TEST, cfg.TEST.IMS_PER_BATCH = 0, 1
    cfg.freeze()
    return cfg


def tiles_line(cfg: Any, merged: int) -> str:
    """What an evaluation in tiles logs."""
    boxes = "1 box" if merged == 1 else f"{merged} boxes"
    return (
        f"Tiles of {cfg.TEST.TILES} px that overlap by {cfg.TEST.TILE_OVERLAP:.0%}: {boxes} merged "
        "across seams"
    )


def check_tiles(tiles: int, overlap: float) -> None:
    """Raise ``DatasetError`` unless there are such tiles; 0 is none."""
    if type(tiles) is not int or tiles < 0 or 0 < tiles < 32:
        raise DatasetError(f"tiles must be 0 or a side of at least 32 px, got {tiles!r}")
    if not isinstance(overlap, int | float) or not 0 <= overlap <= 0.9:
        raise DatasetError(f"the overlap of tiles must be between 0 and 0.9, got {overlap!r}")


def tile_places(size: Sequence[int], tiles: int, overlap: float) -> list[tuple[int, int, int, int]]:
    """Where the tiles of an image lie, row by row: x1, y1, x2, y2 px.

    All have the full size; the last of a row or column is moved back to the image's border. A side
    of the image that is shorter than a tile is a tile's.

    Args:
        size: (H, W) px.
        tiles, overlap: see :meth:`TiledPrediction.predict_tiles`.
    """
    height, width = size
    return [
        (x, y, min(x + tiles, width), min(y + tiles, height))
        for y in _starts(height, tiles, overlap)
        for x in _starts(width, tiles, overlap)
    ]


def _starts(length: int, tile: int, overlap: float) -> list[int]:
    step = max(1, tile - round(overlap * tile))
    count = 1 + max(0, -(-(length - tile) // step))
    return [min(i * step, max(0, length - tile)) for i in range(count)]


def merge_tiles(
    found: Sequence[Any],
    places: Sequence[tuple[int, int, int, int]],
    size: Sequence[int],
    tiles: int,
) -> TiledDetections:
    """The detections of an image from those of its tiles.

    Args:
        found: of each tile, in its own px; with ``boxes``, ``scores`` and ``labels``.
        places: see :func:`tile_places`; empty: the only tile is the whole image.
        size: (H, W) px of the image.
        tiles: px, side of a tile.
    """
    boxes = _joined([one.boxes for one in found], np.float32).reshape(-1, 4)
    scores = _joined([one.scores for one in found], np.float32)
    labels = _joined([one.labels for one in found], np.int64)
    if not places:
        return TiledDetections(boxes, scores, labels, np.ones(len(scores), np.int64))
    tile = np.repeat(np.arange(len(found)), [len(one) for one in found])
    rects = np.array(places, np.float32)
    boxes = boxes + rects[tile][:, [0, 1, 0, 1]]
    tolerance = max(2.0, _BORDER * tiles)
    limits = _inner_borders(rects, size)[tile]
    groups = _group(tile, _candidates(boxes, scores, labels, tile, rects, limits, tolerance))
    parts = np.ones(len(scores), np.int64)
    for members in groups:
        first, *others = members
        boxes[first] = _one_box(boxes[members], limits[members], rects[tile[members]], tolerance)
        scores[first] = scores[members].max()
        parts[first], parts[others] = len(members), 0
    order = np.argsort(-scores, kind="stable")
    return TiledDetections(boxes, scores, labels, parts)[order[parts[order] > 0]]


def _joined(arrays: Sequence[Any], dtype: type) -> np.ndarray:
    # np.asarray also reads tensors of the CPU.
    return np.concatenate([np.asarray(values, dtype) for values in arrays])


def _inner_borders(rects: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """(tiles, 4) px: the borders of each tile that cut objects; infinite at the image's border."""
    height, width = size
    outer = rects == np.array([0, 0, width, height], np.float32)
    away = np.array([-np.inf, -np.inf, np.inf, np.inf], np.float32)
    return np.where(outer, away, rects)


def _to_border(boxes: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """(n,) px from each box to the nearest border that cuts; negative beyond it."""
    return ((boxes - limits) * np.array([1, 1, -1, -1], np.float32)).min(axis=1)


def _candidates(
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    tile: np.ndarray,
    rects: np.ndarray,
    limits: np.ndarray,
    tolerance: float,
) -> list[tuple[int, int]]:
    """Pairs of boxes, of two tiles each, that may be one object; the surest first."""
    cut = _to_border(boxes, limits) <= tolerance
    ends = np.searchsorted(tile, np.arange(len(rects) + 1))  # the boxes of a tile follow each other
    grown = boxes + tolerance * np.array([-1, -1, 1, 1], np.float32)
    rows: list[np.ndarray] = []
    for one, other in _overlapping(rects):
        first, second = rects[one], rects[other]
        low, high = np.maximum(first[:2], second[:2]), np.minimum(first[2:], second[2:])
        common = np.concatenate((low, high))
        # What ends at the common part may reach into it: boxes are not exact.
        a, b = (_within(grown, ends[t], ends[t + 1], common) for t in (one, other))
        if not (len(a) and len(b)):
            continue
        in_a, in_b = _clip(boxes[a], common), _clip(boxes[b], common)
        area_a, area_b = _areas(in_a), _areas(in_b)
        shared = _shared(in_a, in_b)
        iou = shared / np.maximum(area_a[:, None] + area_b - shared, 1e-6)
        sure = np.sqrt(scores[a][:, None] * scores[b])
        # A piece that a border cuts off may be too thin for its IoU to say anything.
        piece_a = cut[a] & (area_a >= _INSIDE * _areas(boxes[a]))
        piece_b = cut[b] & (area_b >= _INSIDE * _areas(boxes[b]))
        piece_a = piece_a[:, None] & ~_inside(boxes[b], first, tolerance)
        piece_b = piece_b & ~_inside(boxes[a], second, tolerance)[:, None]
        share_a = _shared(in_a, grown[b]) / np.maximum(area_a, 1e-6)[:, None]
        share_b = _shared(grown[a], in_b) / np.maximum(area_b, 1e-6)
        share = np.maximum(np.where(piece_a, share_a, 0), np.where(piece_b, share_b, 0))
        rank = np.where(iou >= _AGREE, 1 + iou * sure, np.where(share >= _INSIDE, share * sure, 0))
        rank[labels[a][:, None] != labels[b]] = 0
        i, j = rank.nonzero()
        rows.append(np.stack((rank[i, j], a[i], b[j]), axis=1))
    if not rows:
        return []
    pairs = np.concatenate(rows)
    pairs = pairs[np.argsort(-pairs[:, 0], kind="stable")]
    return [(int(a), int(b)) for a, b in pairs[:, 1:]]


def _overlapping(rects: np.ndarray) -> list[tuple[int, int]]:
    meet = (rects[:, None, :2] < rects[None, :, 2:]).all(axis=2)
    return [(int(a), int(b)) for a, b in np.argwhere(np.triu(meet & meet.T, 1))]


def _clip(boxes: np.ndarray, rect: np.ndarray) -> np.ndarray:
    return boxes.clip(rect[[0, 1, 0, 1]], rect[[2, 3, 2, 3]])


def _within(boxes: np.ndarray, start: int, end: int, rect: np.ndarray) -> np.ndarray:
    """Indices, from ``start`` to before ``end``, of the boxes that overlap ``rect``."""
    clipped = _clip(boxes[start:end], rect)
    return start + (clipped[:, 2:] > clipped[:, :2]).all(axis=1).nonzero()[0]


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)


def _shared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(len(a), len(b)) px² that boxes share."""
    low = np.maximum(a[:, None, :2], b[:, :2])
    high = np.minimum(a[:, None, 2:], b[:, 2:])
    return (high - low).clip(0).prod(axis=2)


def _inside(boxes: np.ndarray, rect: np.ndarray, tolerance: float) -> np.ndarray:
    """Whether boxes lie in a tile."""
    low, high = rect[..., :2] - tolerance, rect[..., 2:] + tolerance
    return ((boxes[:, :2] >= low) & (boxes[:, 2:] <= high)).all(axis=1)


def _group(tile: np.ndarray, pairs: Iterable[tuple[int, int]]) -> Iterator[list[int]]:
    """Join pairs, in their order, into groups of at least two boxes, at most one of each tile."""
    group_of: dict[int, list[int]] = {}
    for pair in pairs:
        one, other = (group_of.setdefault(box, [box]) for box in pair)
        if one is not other and not {*tile[one]} & {*tile[other]}:
            one += other
            group_of.update(dict.fromkeys(other, one))
    seen: set[int] = set()
    for group in group_of.values():
        if len(group) > 1 and id(group) not in seen:
            seen.add(id(group))
            yield group


def _one_box(
    boxes: np.ndarray, limits: np.ndarray, rects: np.ndarray, tolerance: float
) -> np.ndarray:
    """The box of an object that several tiles see: of the tile that sees it whole, or the union.

    Where several tiles see it whole, the one in which it lies farthest from a border that cuts.
    """
    union = np.concatenate((boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)))
    margin = _to_border(boxes, limits)
    whole = (margin > tolerance) & _inside(np.broadcast_to(union, boxes.shape), rects, tolerance)
    return boxes[np.where(whole, margin, -np.inf).argmax()] if whole.any() else union
