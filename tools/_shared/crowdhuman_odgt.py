"""Reading CrowdHuman's annotation files, which hold one JSON object per line and image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tqdm import tqdm

from onenet.data.images import image_size
from onenet.errors import DatasetError

PERSON = {"id": 1, "name": "person"}


def read_odgt(file: Path, images: Path) -> dict[str, Any]:
    """Read the full boxes (``fbox``) of an ``.odgt`` file as the content of a COCO file.

    As in the official evaluation, everything except a ``person`` without ``extra.ignore`` becomes a
    crowd region, such as a ``mask``. Boxes are not clipped to the image; visible boxes (``vbox``)
    are kept as ``bbox_vis``.

    Args:
        images: folder of ``ID.jpg``; image sizes are read from the files.

    Raises:
        DatasetError: the file cannot be read, or a line is wrong or its image is missing (the
            message gives the line's number).
    """
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": [PERSON]}
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{file} cannot be read: {error}") from error
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
            if not picture.is_file():
                raise ValueError(f"there is no image {picture}; is --images the right folder?")
            height, width = image_size(str(picture))
            image = {"id": len(seen), "file_name": f"{name}.jpg", "width": width, "height": height}
            content["images"].append(image)
            for index, box in enumerate(record["gtboxes"]):
                annotation = _annotation(box, f"gtboxes[{index}]")
                annotation["id"] = len(content["annotations"]) + 1
                annotation["image_id"] = image["id"]
                content["annotations"].append(annotation)
        except ValueError as error:  # includes DatasetError
            raise DatasetError(f"{file}:{number}: {error}") from error
    if not seen:
        raise DatasetError(f"{file} is empty; expected one JSON object per line and image.")
    return content


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


def _annotation(box: Any, where: str) -> dict[str, Any]:
    if not isinstance(box, dict):
        raise ValueError(f"{where} must be a JSON object, got {box!r:.60}")
    extra = box.get("extra", {})
    if not isinstance(box.get("tag"), str) or not isinstance(extra, dict):
        raise ValueError(f"{where}: 'tag' must be text, and 'extra' a JSON object")
    full = _box(box.get("fbox"), f"{where}: 'fbox'")
    annotation = {
        "category_id": PERSON["id"],
        "bbox": full,
        "area": full[2] * full[3],
        "iscrowd": int(box["tag"] != PERSON["name"] or extra.get("ignore", 0) != 0),
    }
    if "vbox" in box:
        annotation["bbox_vis"] = _box(box["vbox"], f"{where}: 'vbox'")
    return annotation


def _box(value: Any, where: str) -> list[float]:
    good = isinstance(value, list) and len(value) == 4
    # JSON integers have no limit, int64 arrays do.
    if not good or not all(type(v) in (int, float) and abs(v) < 2**63 for v in value):
        raise ValueError(f"{where} must be [x, y, width, height] in pixels, got {value!r:.60}")
    return value
