"""Reading CrowdHuman's annotation files, which hold one JSON object per line and image."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tqdm import tqdm

from onenet.data.images import image_size
from onenet.errors import DatasetError
from onenet.files import read_text

from .conversion import Conversion

PERSON = "person"


def read_odgt(file: Path, images: Path) -> Conversion:
    """Read the full boxes (``fbox``) of an ``.odgt`` file.

    As in the official evaluation, everything except a ``person`` without ``extra.ignore`` becomes a
    crowd region, such as a ``mask``. Boxes are not clipped to the image; visible boxes (``vbox``)
    are kept as ``bbox_vis``.

    Args:
        images: folder of ``ID.jpg``; image sizes are read from the files.

    Raises:
        DatasetError: the file cannot be read, or a line is wrong or its image is missing (the
            message gives the line's number).
    """
    result = Conversion(class_names=[PERSON])
    # Not splitlines(), which also splits within the text of an entry.
    lines = read_text(file).split("\n")
    seen: dict[str, int] = {}
    for number, line in enumerate(tqdm(lines, unit="image", disable=None), start=1):
        if not line.strip():
            continue
        try:
            record = _parse(line)
            name = record["ID"]
            if name in seen:
                raise ValueError(f"image {name!r} is already in line {seen[name]}")
            seen[name] = number
            picture = images / f"{name}.jpg"
            if not os.path.isfile(picture):  # Path.is_file() raises if the name is too long
                raise ValueError(
                    f"there is no image {str(picture):.300}; is --images the right folder?"
                )
            result.add_image(f"{name}.jpg", image_size(str(picture)))
            for index, box in enumerate(record["gtboxes"]):
                _add(result, box, f"gtboxes[{index}]")
        except ValueError as error:  # includes DatasetError
            raise DatasetError(f"{file}:{number}: {error}") from error
    if not seen:
        raise DatasetError(f"{file} is empty; expected one JSON object per line and image.")
    return result


def _parse(line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not a JSON object: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"expected a JSON object with ID and gtboxes, got {record!r:.60}")
    if not isinstance(record.get("ID"), str) or not record["ID"]:
        raise ValueError(f"'ID' must be the image's name without .jpg, got {record.get('ID')!r}")
    if not isinstance(record.get("gtboxes"), list):
        what = "is not a list" if "gtboxes" in record else "is missing"
        raise ValueError(f"'gtboxes' {what}; is this an annotation file, with ground truth?")
    return record


def _add(result: Conversion, box: Any, where: str) -> None:
    """Add an entry of ``gtboxes`` to the last image."""
    if not isinstance(box, dict):
        raise ValueError(f"{where} must be a JSON object, got {box!r:.60}")
    extra = box.get("extra", {})
    if not isinstance(box.get("tag"), str) or not isinstance(extra, dict):
        raise ValueError(f"{where}: 'tag' must be text, and 'extra' a JSON object")
    full = _box(box.get("fbox"), f"{where}: 'fbox'")
    more = {"bbox_vis": _box(box["vbox"], f"{where}: 'vbox'")} if "vbox" in box else {}
    crowd = box["tag"] != PERSON or extra.get("ignore", 0) != 0
    result.add_box(0, full, crowd=crowd, **more)


def _box(value: Any, where: str) -> list[float]:
    good = isinstance(value, list) and len(value) == 4
    # JSON integers have no limit, int64 arrays do.
    if not good or not all(type(v) in (int, float) and abs(v) < 2**63 for v in value):
        raise ValueError(f"{where} must be [x, y, width, height] in pixels, got {value!r:.60}")
    return value
