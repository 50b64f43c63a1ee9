"""Reading COCO detection files; every problem becomes an error that names the entry."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onenet.errors import DatasetError
from onenet.files import read_json

from .sources import is_line, shortened

PARTS = ("categories", "images", "annotations")  # in the order in which they are checked

_NO_ANNOTATIONS = " A file without them can be tested on (--eval-only), but not trained on."
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Problem:
    """What is wrong with one entry of a COCO file.

    Attributes:
        part: the list that holds the entry, one of ``PARTS``.
        index: position of the entry in that list.
        kind: what it shares with similar problems, for a report.
        text: the entry and what is wrong with it, for an error message.
    """

    part: str
    index: int
    kind: str
    text: str


def read_coco_json(file: Path, *, need_annotations: bool = True) -> dict[str, Any]:
    """Read a COCO detection file and check every entry.

    Args:
        need_annotations: see :func:`parse_coco_json`.

    Raises:
        DatasetError: the file cannot be read, or an entry is wrong (the message names it).
    """
    data = parse_coco_json(file, need_annotations=need_annotations)
    for problem in find_problems(data):
        raise DatasetError(f"{file}: {problem.text}.")
    return data


def parse_coco_json(file: Path, *, need_annotations: bool = True) -> dict[str, Any]:
    """Read a COCO detection file and check that its lists exist, but not their entries.

    White space around the names of categories is left out.

    Args:
        need_annotations: refuse a file without ``annotations``, such as that of a test set whose
            objects are secret (COCO's test-dev); else it gets an empty list.

    Raises:
        DatasetError: the file cannot be read, or lacks a list.
    """
    data = read_json(file)
    if not isinstance(data, dict):
        raise DatasetError(
            f"{file} is not COCO detection data: expected an object with images, annotations "
            f"and categories, got a JSON {type(data).__name__}."
        )
    if not need_annotations:
        data.setdefault("annotations", [])
    for part in ("images", "annotations", "categories"):
        if not isinstance(data.get(part), list):
            what = "is not a list" if part in data else "is missing"
            advice = _NO_ANNOTATIONS if part == "annotations" and part not in data else ""
            raise DatasetError(
                f"{file} is not COCO detection data: {part!r} {what}; expected the lists images, "
                f"annotations and categories, got {shortened(list(data)) or 'nothing'}.{advice}"
            )
    if not data["categories"]:
        raise DatasetError(f"{file}: 'categories' is empty; expected one entry per class.")
    for category in data["categories"]:
        if isinstance(category, dict) and isinstance(category.get("name"), str):
            category["name"] = category["name"].strip()
    return data


def find_problems(data: dict[str, Any]) -> Iterator[Problem]:
    """Yield the first problem of every entry that training would reject."""
    ids: dict[str, set[int]] = {part: set() for part in PARTS}
    for part in PARTS:
        for index, entry in enumerate(data[part]):
            if not isinstance(entry, dict):
                found = "not a JSON object", f"must be a JSON object, got {entry!r:.60}"
                label = ""
            else:
                found = _id_problem(entry, ids[part]) or _CHECKS[part](entry, ids)
                label = f" (id {entry['id']!r:.60})" if "id" in entry else ""
            if found:
                kind, text = found
                yield Problem(part, index, f"{part}: {kind}", f"{part}[{index}]{label}: {text}")


Found = tuple[str, str] | None  # kind and text of a problem


def _id_problem(entry: dict, seen: set[int]) -> Found:
    number = entry.get("id")
    if type(number) is not int or not _is_number(number):
        return "'id' is not an integer", f"'id' must be an integer, got {number!r:.60}"
    if number in seen:
        return "id used twice", "this id has been used before; ids must be unique"
    seen.add(number)
    return None


def _category_problem(category: dict, _: dict[str, set[int]]) -> Found:
    name = category.get("name")
    if not is_line(name) or not name:
        text = f"'name' must be a string without control characters, not empty, got {name!r:.60}"
        return "'name' is not a line of text", text
    return None


def _image_problem(image: dict, _: dict[str, set[int]]) -> Found:
    name = image.get("file_name")
    if not isinstance(name, str) or not _is_path(name):
        return "'file_name' is not a path", f"'file_name' must be a path, got {name!r:.60}"
    if os.path.isabs(name) or os.path.normpath(name).split(os.sep)[0] == os.pardir:
        return (
            "'file_name' leaves the image folder",
            f"'file_name' {name!r:.200} leaves the image folder, which is not allowed; write it "
            "relative to the folder, without '..', and give the folder that holds all images",
        )
    for key in ("width", "height"):
        value = image.get(key)
        if not _is_number(value) or not 1 <= value < 2**31 or value != int(value):
            text = f"{key!r} must be a whole number of pixels, got {value!r:.60}"
            return f"{key!r} is not a number of pixels", text
    return None


def _annotation_problem(annotation: dict, ids: dict[str, set[int]]) -> Found:
    for key, part in (("image_id", "images"), ("category_id", "categories")):
        value = annotation.get(key)
        if type(value) is not int or value not in ids[part]:
            return (
                f"unknown {key}",
                f"{key!r} is {value!r:.60}, but no entry of {part!r} has this id",
            )
    bbox = annotation.get("bbox")
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(_is_number, bbox)):
        text = f"'bbox' must be [x, y, width, height] in pixels, got {bbox!r:.60}"
        return "'bbox' is not four numbers", text
    if annotation.get("ignore"):
        text = "'ignore' is not supported; remove it, or mark the region with \"iscrowd\": 1"
        return "'ignore' is set", text
    crowd, area = annotation.get("iscrowd", 0), annotation.get("area", 0)
    if type(crowd) not in (bool, int, float) or crowd not in (0, 1):
        return "'iscrowd' is not 0 or 1", f"'iscrowd' must be 0 or 1, got {crowd!r:.60}"
    if not _is_number(area) or not math.isfinite(area) or area < 0:
        text = f"'area' must be a number of px², 0 or more, or be left out, got {area!r:.60}"
        return "'area' is not a number of px²", text
    return None


_CHECKS = {
    "categories": _category_problem,
    "images": _image_problem,
    "annotations": _annotation_problem,
}


def _is_path(text: str) -> bool:
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return bool(text) and not _CONTROL.search(text)


def _is_number(value: object) -> bool:
    # JSON integers have no limit, int64 arrays do.
    return type(value) is float or (type(value) is int and abs(value) < 2**63)
