"""A small COCO file with everything that a good one may have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from onenet.data.sources import DatasetSource

# Ids out of order and with gaps; image 7 has no object, image 9 only a crowd region.
GOOD: dict[str, Any] = {
    "images": [
        {"id": 9, "file_name": "sub/nine.png", "width": 40, "height": 30},
        {"id": 3, "file_name": "drei-\u00e4.jpg", "width": 64.0, "height": 48},
        {"id": 7, "file_name": "seven.jpg", "width": 10, "height": 20},
    ],
    "categories": [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}],
    "annotations": [
        {"id": 1, "image_id": 3, "category_id": 90, "bbox": [1.5, 2, 10, 20.25], "iscrowd": 0},
        {"id": 2, "image_id": 9, "category_id": 1, "bbox": [0, 0, 40, 30], "iscrowd": 1},
        {"id": 3, "image_id": 3, "category_id": 1, "bbox": [-5, 40, 100, 20]},
    ],
}


def write(folder: Path, data: Any) -> DatasetSource:
    file = folder / "data.json"
    file.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return DatasetSource("mine", file, folder / "images")


def perfect(truth: dict[str, Any]) -> list[dict[str, Any]]:
    """Perfect detections of everything except crowds."""
    return [
        {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": 1}
        for a in truth["annotations"]
        if not a.get("iscrowd")
    ]
