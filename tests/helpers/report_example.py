"""A data set of two images with a detection of every kind, counted by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

# Image 1: two cats and a dog; image 2: a dog, and a crowd of cats.
TRUTH: dict[str, Any] = {
    "images": [
        {"id": 1, "file_name": "one.png", "width": 100, "height": 100},
        {"id": 2, "file_name": "two.png", "width": 100, "height": 100},
    ],
    "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 3, "bbox": [0, 0, 20, 20], "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 3, "bbox": [40, 0, 20, 20], "iscrowd": 0},
        {"id": 3, "image_id": 1, "category_id": 7, "bbox": [0, 50, 20, 20], "iscrowd": 0},
        {"id": 4, "image_id": 2, "category_id": 7, "bbox": [10, 10, 30, 30], "iscrowd": 0},
        {"id": 5, "image_id": 2, "category_id": 3, "bbox": [50, 50, 50, 50], "iscrowd": 1},
    ],
}
for _annotation in TRUTH["annotations"]:
    _annotation["area"] = _annotation["bbox"][2] * _annotation["bbox"][3]


def found(image: int, category: int, box: list[float], score: float) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


# Best first: found, found, duplicate, confused, ignored, false; below 0.4 another that is found.
RESULTS = [
    found(1, 3, [0, 0, 20, 20], 0.95),
    found(2, 7, [10, 10, 30, 28], 0.9),
    found(1, 3, [1, 0, 20, 20], 0.8),
    found(1, 3, [0, 50, 20, 22], 0.7),
    found(2, 3, [60, 60, 20, 20], 0.6),
    found(1, 7, [70, 70, 20, 20], 0.5),
    found(1, 3, [40, 1, 20, 20], 0.1),
]


def write_example(
    folder: Path, truth: dict[str, Any] = TRUTH, results: list[dict[str, Any]] = RESULTS
) -> list[str]:
    """Write the data set with its pictures, and the results; the arguments of tools/report.py."""
    (folder / "images").mkdir(parents=True)
    for image in truth["images"]:
        pixels = np.full((image["height"], image["width"], 3), 120, np.uint8)
        cv2.imwrite(str(folder / "images" / image["file_name"]), pixels)
    (folder / "truth.json").write_text(json.dumps(truth), encoding="utf-8")
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    dataset = f"{folder}/truth.json:{folder}/images"
    words = ["--input", folder / "results.json", "--dataset", dataset, "--output", folder / "out"]
    return list(map(str, words))
