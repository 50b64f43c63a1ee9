"""The annotations of a COCO file as NumPy arrays."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .images import shortest_edge_size


@dataclass(frozen=True)
class Annotations:
    """The T boxes of a data set's B images, in the order of the file.

    Attributes:
        class_names: name of each label.
        sizes: (B, 2) float64, width and height of each image in px.
        images: (T,) int64, index of the image that each box belongs to.
        labels: (T,) int64.
        boxes: (T, 4) float64, x, y, width and height in px.
        crowd: (T,) bool, true for crowd regions, which are not objects.
    """

    class_names: list[str]
    sizes: np.ndarray
    images: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    crowd: np.ndarray

    def at(self, keep: np.ndarray) -> Annotations:
        """The boxes that a (T,) bool mask or an index array selects; images and classes stay."""
        parts = ("images", "labels", "boxes", "crowd")
        return replace(self, **{part: getattr(self, part)[keep] for part in parts})

    @property
    def with_size(self) -> np.ndarray:
        """(T,) bool: whether a box has a finite, positive size, also as float32."""
        boxes = self.xyxy
        return np.isfinite(boxes).all(axis=1) & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)

    @property
    def usable(self) -> np.ndarray:
        """(T,) bool: whether training and evaluation take a box, crowd or not.

        The part of it within its image has a finite, positive size.
        """
        boxes, last = self.xyxy, self.sizes[self.images]
        shown = (boxes[:, :2] < last) & (boxes[:, 2:] > 0)
        return self.with_size & shown.all(axis=1)

    @property
    def objects(self) -> np.ndarray:
        """(T,) bool: the boxes that training learns and evaluation wants found."""
        return self.usable & ~self.crowd

    @property
    def xyxy(self) -> np.ndarray:
        """(T, 4) float32 xyxy px; neither clipped to the image nor resized."""
        with np.errstate(over="ignore", invalid="ignore"):  # what float32 cannot hold becomes inf
            boxes = self.boxes.astype(np.float32)
            boxes[:, 2:] += boxes[:, :2]
        return boxes

    @property
    def sides(self) -> np.ndarray:
        """(T,) float64 px: the square root of each box's area."""
        return np.sqrt(self.boxes[:, 2] * self.boxes[:, 3])

    def resized(self, short: int, longest: int) -> Annotations:
        """The annotations after resizing the images' shortest edge to ``short`` px.

        Args:
            short: px; 0 leaves the images as they are.
            longest: px that the longest edge may not exceed.
        """
        if short == 0:
            return self
        new = [shortest_edge_size(h, w, short, longest)[::-1] for w, h in self.sizes]
        scale = np.array(new) / self.sizes
        return replace(
            self, sizes=self.sizes * scale, boxes=self.boxes * np.tile(scale, 2)[self.images]
        )


def read_annotations(content: dict[str, Any]) -> Annotations:
    """Read the annotations from the content of a COCO file.

    Args:
        content: as :func:`~onenet.data.coco_json.read_coco_json` returns it.
    """
    categories = sorted_categories(content)
    label_of = {category["id"]: k for k, category in enumerate(categories)}
    image_of = {image["id"]: k for k, image in enumerate(content["images"])}
    found = content["annotations"]
    sizes = [(image["width"], image["height"]) for image in content["images"]]
    return Annotations(
        class_names=[category["name"] for category in categories],
        sizes=np.array(sizes, dtype=np.float64).reshape(-1, 2),
        images=np.array([image_of[a["image_id"]] for a in found], dtype=np.int64),
        labels=np.array([label_of[a["category_id"]] for a in found], dtype=np.int64),
        boxes=np.array([a["bbox"] for a in found], dtype=np.float64).reshape(-1, 4),
        crowd=np.array([a.get("iscrowd", 0) for a in found], dtype=bool),
    )


def sorted_categories(content: dict[str, Any]) -> list[dict[str, Any]]:
    """The categories in the order of their ids, which is the order of the labels."""
    return sorted(content["categories"], key=lambda category: category["id"])
