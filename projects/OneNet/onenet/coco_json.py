"""Reading a COCO detection file with an answer to everything that may be wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from .datasets import DatasetError, shortened


def read_coco_json(file: Path) -> dict[str, Any]:
    """The content of a COCO detection file, whose every entry has been checked.

    Raises:
        DatasetError: it cannot be read, or an entry (named) is not what it should be.
    """
    try:
        with open(file, encoding="utf-8") as stream:
            data = json.load(stream)
    except OSError as error:
        raise DatasetError(f"{file} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{file} is not valid JSON: {error}") from error
    _check(file, data)
    return data


def _check(file: Path, data: Any) -> None:
    if not isinstance(data, dict):
        raise DatasetError(
            f"{file} is not COCO detection data: expected an object with images, annotations "
            f"and categories, got a JSON {type(data).__name__}."
        )
    for part in ("images", "annotations", "categories"):
        if not isinstance(data.get(part), list):
            what = "is no list" if part in data else "is missing"
            raise DatasetError(
                f"{file} is not COCO detection data: {part!r} {what}; expected the lists images, "
                f"annotations and categories, got {shortened(list(data)) or 'nothing'}."
            )
    if not data["categories"]:
        raise DatasetError(f"{file}: 'categories' is empty; expected one entry for every class.")
    categories = _check_ids(file, "categories", data["categories"])
    for index, category in enumerate(data["categories"]):
        if not isinstance(category.get("name"), str):
            _fail(file, "categories", index, category, "'name' must be a string")
    images = _check_ids(file, "images", data["images"])
    for index, image in enumerate(data["images"]):
        if not isinstance(image.get("file_name"), str) or not image["file_name"]:
            _fail(file, "images", index, image, "'file_name' must be a path")
        for key in ("width", "height"):
            value = image.get(key)
            if not _is_number(value) or not float(value).is_integer() or value < 1:
                problem = f"{key!r} must be a whole number of pixels, got {value!r:.60}"
                _fail(file, "images", index, image, problem)
    _check_ids(file, "annotations", data["annotations"])
    for index, annotation in enumerate(data["annotations"]):
        problem = _annotation_problem(annotation, images, categories)
        if problem:
            _fail(file, "annotations", index, annotation, problem)


def _annotation_problem(annotation: dict, images: set[int], categories: set[int]) -> str | None:
    for key, part, known in (
        ("image_id", "images", images),
        ("category_id", "categories", categories),
    ):
        value = annotation.get(key)
        if type(value) is not int or value not in known:
            return f"no entry of {part!r} has its {key}, {value!r}"
    bbox = annotation.get("bbox")
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(_is_number, bbox)):
        return f"'bbox' must be [x, y, width, height] in pixels, got {bbox!r:.60}"
    if annotation.get("ignore"):
        return "'ignore' is not supported; remove it, or mark the region with \"iscrowd\": 1"
    return None


def _check_ids(file: Path, part: str, entries: list) -> set[int]:
    seen: set[int] = set()
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise DatasetError(f"{file}: {part}[{index}] must be a JSON object, got {entry!r:.60}.")
        number = entry.get("id")
        if type(number) is not int or not _is_number(number):
            _fail(file, part, index, entry, f"'id' must be an integer, got {number!r:.60}")
        if number in seen:
            _fail(file, part, index, entry, "this id has been used before; ids must be unique")
        seen.add(number)
    return seen


def _is_number(value: object) -> bool:
    # JSON's integers have no limit; those of arrays do.
    return type(value) is float or (type(value) is int and abs(value) < 2**63)


def _fail(file: Path, part: str, index: int, entry: dict, problem: str) -> NoReturn:
    label = f" (id {entry['id']})" if "id" in entry else ""
    raise DatasetError(f"{file}: {part}[{index}]{label}: {problem}.")
