"""Small data sets for the checks, with boxes that tests choose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

NAN, GOOD = float("nan"), [1, 1, 5, 5]


def content(*boxes: Any, **changes: Any) -> dict[str, Any]:
    """A file with two images of 40 x 30 px, two classes, and objects of the first of both."""
    images = [
        {"id": i, "file_name": f"{name}.png", "width": 40, "height": 30}
        for i, name in ((4, "a"), (2, "b"))
    ]
    annotations = [
        {"id": 50 + i, "image_id": 4, "category_id": 7, "bbox": box} for i, box in enumerate(boxes)
    ]
    categories = [{"id": 7, "name": "cat"}, {"id": 3, "name": "ant"}]
    return {"images": images, "annotations": annotations, "categories": categories, **changes}


def write(folder: Path, data: dict[str, Any]) -> str:
    """Write a data set with all of its images; returns its name."""
    (folder / "images").mkdir(exist_ok=True)
    for image in data["images"]:
        pixels = np.zeros((image["height"], image["width"], 3), np.uint8)
        Image.fromarray(pixels).save(folder / "images" / image["file_name"])
    (folder / "d.json").write_text(json.dumps(data))
    return f"{folder}/d.json:{folder}/images"
