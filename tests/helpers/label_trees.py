"""Small data sets in the formats of YOLO and Pascal VOC, and their conversion."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from helpers.project import load_script

Content = str | bytes | tuple[int, int]


def write_tree(folder: Path, files: dict[str, Content]) -> Path:
    """Write files by their paths below ``folder``: text, bytes, or images of (width, height) px."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, tuple):
            Image.new("RGB", content).save(path)
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content, encoding="utf-8")
    return folder


def voc_object(name: str, *box: object, **more: object) -> str:
    """An ``<object>`` with the corners ``box``."""
    sides = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    bndbox = "".join(f"<{side}>{value}</{side}>" for side, value in sides)
    rest = "".join(f"<{key}>{value}</{key}>" for key, value in more.items())
    return f"<object><name>{name}</name>{rest}<bndbox>{bndbox}</bndbox></object>"


def voc_file(*objects: str) -> str:
    return f"<annotation>{''.join(objects)}</annotation>"


def convert(format: str, folder: Path, *words: object) -> dict[str, Any]:
    """What convert_to_coco.py makes of ``labels`` and ``images`` in ``folder``.

    Args:
        words: more of the command line; YOLO's ``--classes`` is ``data.yaml`` unless they say it.
    """
    output = folder / "out" / "coco.json"
    line = [format, "--annotations", folder / "labels", "--images", folder / "images"]
    if format == "yolo" and "--classes" not in words:
        line += ["--classes", folder / "data.yaml"]
    tool = load_script("tools/convert_to_coco.py")
    tool.main([str(word) for word in (*line, "--output", output, *words)])
    return json.loads(output.read_text(encoding="utf-8"))


def refusal(capsys: pytest.CaptureFixture[str], format: str, *words: Any) -> str:
    """The error that a conversion ends with, after its notes."""
    with pytest.raises(SystemExit) as stop:
        convert(format, *words)
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("error: ")
    return lines[-1]


def objects(content: dict[str, Any]) -> dict[str, list[tuple[str, list[float]]]]:
    """Class and box of every object, by the name of its image."""
    classes = {category["id"]: category["name"] for category in content["categories"]}
    files = {image["id"]: image["file_name"] for image in content["images"]}
    found: dict[str, list[tuple[str, list[float]]]] = {name: [] for name in files.values()}
    for entry in content["annotations"]:
        found[files[entry["image_id"]]].append((classes[entry["category_id"]], entry["bbox"]))
    return found
