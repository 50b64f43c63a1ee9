"""The content of a COCO file as converters fill it, image by image."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onenet.data.coco_json import find_problems
from onenet.data.sources import is_line, shortened
from onenet.errors import DatasetError
from onenet.files import write_whole


@dataclass
class Conversion:
    """What a converter has read.

    Attributes:
        class_names: by label, counted from 0.
        images, annotations: entries as in a COCO file; a category's id is its label + 1.
        notes: lines for the user: what was left out, and what looks wrong.
    """

    class_names: list[str] = field(default_factory=list)
    images: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add_image(self, name: str, size: tuple[int, int]) -> None:
        """Add an image, to which the boxes added next belong.

        Args:
            name: path relative to the folder of the images.
            size: height and width in px.
        """
        height, width = size
        entry = {"id": len(self.images) + 1, "file_name": name, "width": width, "height": height}
        self.images.append(entry)

    def add_box(
        self, label: int, bbox: Sequence[float], *, crowd: bool = False, **more: object
    ) -> None:
        """Add an object of the last image.

        Args:
            bbox: x, y, width and height in px.
            crowd: whether it is a region of many, which is not an object.
            more: further entries of the annotation.
        """
        self.annotations.append(
            {
                "id": len(self.annotations) + 1,
                "image_id": self.images[-1]["id"],
                "category_id": label + 1,
                "bbox": list(bbox),
                "area": bbox[2] * bbox[3],
                "iscrowd": int(crowd),
                **more,
            }
        )

    def note_similar_names(self) -> None:
        """Note class names that differ in nothing but upper and lower case."""
        seen: dict[str, str] = {}
        for name in sorted(self.class_names):
            if (first := seen.setdefault(name.casefold(), name)) != name:
                self.notes.append(f"{first!r} and {name!r} are two classes; are they meant to be?")

    @property
    def content(self) -> dict[str, Any]:
        """The content of the COCO file."""
        categories = [{"id": k, "name": name} for k, name in enumerate(self.class_names, start=1)]
        return {"images": self.images, "annotations": self.annotations, "categories": categories}

    @property
    def summary(self) -> str:
        """The numbers of images, boxes and classes, in a line."""
        objects = {entry["image_id"] for entry in self.annotations if not entry["iscrowd"]}
        crowds = sum(entry["iscrowd"] for entry in self.annotations)
        parts = (
            f"{count(len(self.images), 'image')}, "
            f"{len(self.images) - len(objects)} of them without objects",
            f"{count(len(self.annotations) - crowds, 'box', 'boxes')}, "
            f"{count(crowds, 'crowd region')}",
            f"{count(len(self.class_names), 'class', 'classes')}: {shortened(self.class_names)}",
        )
        return "; ".join(parts)

    def write(self, output: Path) -> None:
        """Write the COCO file.

        Raises:
            DatasetError: training would not read the file; nothing is written.
            WriteError: the file cannot be written; what it held before is unchanged.
        """
        for problem in find_problems(self.content):
            raise DatasetError(f"{output} is not written: {problem.text}")
        write_whole(output, json.dumps(self.content, allow_nan=False).encode())


def count(number: int, one: str, many: str | None = None) -> str:
    """A number and what it counts, such as ``"1 image"``."""
    return f"{number} {one if number == 1 else many or f'{one}s'}"


def some(names: Iterable[object]) -> str:
    """A few of the names, in order, for a message."""
    texts = sorted(map(str, names))
    return shortened([text if is_line(text) else repr(text) for text in texts])
