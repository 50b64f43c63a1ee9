"""What the demo found: counts for the last line, and entries for the JSON file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from onenet.files import strict_json, write_whole

# onenet.structures.Detections, onenet.deploy.runtime.ArrayDetections or
# onenet.inference.tiles.TiledDetections.
Detections = Any


class Results:
    """The detections of images or frames.

    Args:
        unit: "image" or "frame".
        class_names: name of each label.
        json_file: where to write the detections; None: only count them, since a stream may be
            endless.
    """

    def __init__(self, unit: str, class_names: list[str], json_file: Path | None) -> None:
        self._unit, self._class_names, self._json_file = unit, class_names, json_file
        self._entries: list[dict[str, Any]] = []
        self.count = self._detections = self._merged = 0

    def add(self, where: dict[str, Any], image: np.ndarray, found: Detections) -> None:
        """Add an image's detections; ``where`` names the file, and the frame of a video."""
        self.count += 1
        self._detections += len(found)
        self._merged += getattr(found, "merged", 0)
        if self._json_file is not None:
            self._entries.append({**where, **describe(image, found, self._class_names)})

    def write(self) -> None:
        """Write the JSON file, if there is one.

        Raises:
            WriteError: it cannot be written; what was there before is unchanged.
        """
        if self._json_file is not None:
            lines = ",\n".join(map(strict_json, self._entries))
            write_whole(self._json_file, f"[\n{lines}\n]\n".encode())

    def __str__(self) -> str:
        pairs = ((self.count, self._unit), (self._detections, "detection"))
        told = ", ".join(f"{number} {what}{'s' * (number != 1)}" for number, what in pairs)
        if self._merged:
            told += f" ({self._merged} more boxes were merged into these across seams of tiles)"
        return told


def describe(image: np.ndarray, found: Detections, class_names: list[str]) -> dict[str, Any]:
    """An image's size and detections, for the JSON file."""
    rows = zip(found.labels.tolist(), found.scores.tolist(), found.boxes.tolist(), strict=True)
    return {
        "width": image.shape[1],
        "height": image.shape[0],
        "detections": [
            {
                "class": class_names[label],
                "label": label,
                "score": round(score, 4),
                "box": [round(v, 2) for v in box],
            }
            for label, score, box in rows
        ],
    }
