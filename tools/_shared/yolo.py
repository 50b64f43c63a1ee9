"""Reading YOLO's labels: a text file for each image, and the classes' names."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from tqdm import tqdm

from onenet.config.yaml import parse
from onenet.data.images import image_size
from onenet.data.sources import is_line
from onenet.errors import ConfigError, DatasetError
from onenet.files import read_text

from .conversion import Conversion, count, some
from .label_trees import composed, find_labels, read_lines

CLASS_LIST = "classes.txt"  # labelImg writes it into the folder of the labels

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d{1,9})?", re.ASCII | re.IGNORECASE)
_KEY = re.compile(r"[\[{]|(names|nc|path|train|val)\s*:")  # how YAML and JSON begin, not a list
# What a label can be beyond its image, in shares of the image, and still be one.
_LARGEST_BOX, _FARTHEST_CORNER = 2, 0.5


@dataclass(frozen=True)
class Classes:
    """The classes of a data set.

    Attributes:
        names: by label.
        key_points: how many numbers follow the box in a line of ``kpt_shape`` data.
    """

    names: list[str]
    key_points: int = 0


def read_yolo(annotations: Path, images: Path, classes: Path) -> Conversion:
    """Read YOLO's labels. Polygons become the boxes around them, key points are left out.

    Args:
        annotations: folder of text files.
        images: folder of the images, with the same sub-folders.
        classes: ``data.yaml``, or a file with class names in order, one per line.

    Raises:
        DatasetError: a file is missing, malformed or without an image; the message names it.
    """
    tree = find_labels(annotations, images, ".txt", class_list=CLASS_LIST)
    known = read_classes(classes)
    result = Conversion(class_names=known.names, notes=tree.notes)
    for file in tree.lists:
        if file.resolve() != classes.resolve():
            what = f"{file}, a list of classes{_difference(file, known, classes)}"
            result.notes.append(f"left out {what}")
    for key, name in tqdm(tree.images.items(), unit="image", disable=None):
        height, width = image_size(str(images / name))
        result.add_image(name, (height, width))
        if key in tree.labels:
            for label, (x1, y1, x2, y2) in read_labels(tree.labels[key], known):
                box = (x1 * width, y1 * height, (x2 - x1) * width, (y2 - y1) * height)
                result.add_box(label, [round(value, 4) for value in box])
    if without := [name for key, name in tree.images.items() if key not in tree.labels]:
        what = count(len(without), "image has no label file", "images have no label file")
        result.notes.append(f"{what}, which means no objects: {some(without)}")
    result.note_similar_names()
    return result


def read_classes(file: Path) -> Classes:
    """The classes in ``data.yaml``, or in a file with a name per line.

    Raises:
        DatasetError: the file cannot be read or does not give every class one name of its own.
    """
    if file.suffix.lower() not in (".yaml", ".yml"):
        names = read_lines(file)
        if not names or any(_KEY.match(name) for name in names):
            what = "is YAML or JSON" if names else "is empty"
            raise DatasetError(
                f"{file} {what}; expected one class a line, or a file that ends in .yaml"
            )
        return Classes(names)
    try:
        content = parse(read_text(file), file, "'names' with the classes")
    except ConfigError as error:
        raise DatasetError(str(error)) from error
    names = _class_names(file, content)
    if "nc" in content and content["nc"] != len(names):
        raise DatasetError(f"{file}: 'nc' is {content['nc']!r:.60}, but 'names' has {len(names)}")
    return Classes(names, _key_points(file, content))


def _class_names(file: Path, content: dict[Any, Any]) -> list[str]:
    if "names" not in content:
        raise DatasetError(f"{file}: 'names' is missing; expected a list of the classes")
    names = content["names"]
    if isinstance(names, dict):
        names = _in_order(file, names)
    if not isinstance(names, list):
        raise DatasetError(
            f"{file}: 'names' must be a list of the classes, or map 0, 1, 2 … to them; "
            f"got {names!r:.60}"
        )
    if not names:
        raise DatasetError(f"{file}: 'names' is empty; expected the classes")
    labels: dict[str, int] = {}
    for label, name in enumerate(names):
        text = composed(name.strip()) if isinstance(name, str) else ""
        if not text or not is_line(text):
            advice = "; write it in quotes" if type(name) in (bool, int, float) else ""
            raise DatasetError(
                f"{file}: the name of class {label} is {name!r:.60}; expected text{advice}"
            )
        if (first := labels.setdefault(text, label)) != label:
            raise DatasetError(f"{file}: {text!r:.60} is class {first} and class {label}")
    return list(labels)


def _in_order(file: Path, names: dict[Any, Any]) -> list[Any]:
    """The values of a mapping whose keys are 0, 1, 2 …, in their order."""
    by_label: dict[int, Any] = {}
    for key, value in names.items():
        label = int(key) if isinstance(key, str) and re.fullmatch(r"\d{1,9}", key, re.A) else key
        if type(label) is not int:
            advice = f"; write `{value}: {key}`" if type(value) is int else ""
            raise DatasetError(
                f"{file}: 'names' has the key {key!r:.60}; expected the classes' numbers, "
                f"0 … {len(names) - 1}{advice}"
            )
        if label in by_label:
            raise DatasetError(f"{file}: 'names': class {label} is there twice")
        by_label[label] = value
    for expected, label in enumerate(sorted(by_label)):
        if label != expected:
            raise DatasetError(
                f"{file}: 'names' has class {label} where {expected} is expected; YOLO counts "
                f"classes from 0, without gaps: number these {len(names)} classes 0 … "
                f"{len(names) - 1}, and the labels alike"
            )
    return [by_label[label] for label in sorted(by_label)]


def _key_points(file: Path, content: dict[Any, Any]) -> int:
    """How many numbers the key points of an object take; 0: there are none."""
    shape = content.get("kpt_shape", [0, 2])
    whole = isinstance(shape, list) and len(shape) == 2 and all(type(n) is int for n in shape)
    if not whole or shape[0] < 0 or shape[1] not in (2, 3):
        raise DatasetError(
            f"{file}: 'kpt_shape' must be the number of key points and 2 or 3, got {shape!r:.60}"
        )
    return shape[0] * shape[1]


def _difference(file: Path, known: Classes, classes: Path) -> str:
    """In which class a list differs from the names in use, to be put after its name."""
    names = read_lines(file)
    for label, (theirs, ours) in enumerate(zip(names, known.names, strict=False)):
        if theirs != ours:
            return f"; class {label} is {theirs!r} there and {ours!r} in {classes}: which is right?"
    return ""


def read_labels(file: Path, classes: Classes) -> list[tuple[int, tuple[float, ...]]]:
    """Read a label file.

    A line holds a class and a box (centre, width and height) or a polygon (three corners or more),
    in shares of the image's width and height; a confidence may follow.

    Returns:
        Label and box of each object; x1, y1, x2 and y2 in shares of the image.

    Raises:
        DatasetError: the file cannot be read, or a line is wrong (the message gives its number).
    """
    found = []
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if words := line.split():
            try:
                found.append((_label(words[0], len(classes.names)), _box(words[1:], classes)))
            except ValueError as error:
                raise DatasetError(f"{file}:{number}: {line!r:.80}: {error}") from error
    return found


def _label(word: str, count: int) -> int:
    """A class, which may be written as ``1.0``."""
    label = Decimal(word) if _NUMBER.fullmatch(word) else Decimal("nan")
    # Compared before it is made an int, which may have as many digits as its exponent says.
    if label.is_nan() or (label < count and label != label.to_integral_value()):
        raise ValueError(f"the class {word!r:.60} is not a whole number")
    if not 0 <= label < count:
        raise ValueError(f"class {word:.60} is not among the {count} classes, 0 … {count - 1}")
    return int(label)


def _box(words: list[str], classes: Classes) -> tuple[float, float, float, float]:
    numbers = [_number(word) for word in words]
    if len(numbers) < 4:
        raise ValueError(f"expected a class and at least 4 numbers, got {len(numbers)}")
    if classes.key_points and len(numbers) not in (4, 4 + classes.key_points):
        raise ValueError(
            f"'kpt_shape' asks for lines of 5 or {5 + classes.key_points} numbers, "
            f"got {len(numbers) + 1}"
        )
    if len(numbers) <= 5 or classes.key_points:
        x, y, width, height = numbers[:4]
        if width < 0 or height < 0:
            raise ValueError("the box's width and height must not be below 0")
        far = max(width, height) > _LARGEST_BOX
        box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    else:
        corners = numbers[: len(numbers) // 2 * 2]
        far = not -_FARTHEST_CORNER <= min(corners) <= max(corners) <= 1 + _FARTHEST_CORNER
        xs, ys = corners[::2], corners[1::2]
        box = (min(xs), min(ys), max(xs), max(ys))
    if far or max(box[:2]) > 1 or min(box[2:]) < 0:
        raise ValueError(
            "it lies outside the image: YOLO's numbers are shares of the image's width and height, "
            "0 … 1. Are these pixels, or key points (which data.yaml gives as kpt_shape)?"
        )
    return box


def _number(word: str) -> float:
    value = float(word) if _NUMBER.fullmatch(word) else math.nan
    if not math.isfinite(value):
        raise ValueError(f"{word!r:.60} is not a number")
    return value
