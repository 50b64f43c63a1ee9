"""Every program that reads images names the one that it cannot read, in one line."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.demo_run import demo, fakes  # noqa: F401
from helpers.project import load_script
from PIL import Image

from onenet.data.dataset import CocoDetection
from onenet.data.sources import find_dataset
from onenet.errors import UnreadableImageError


def chunk(kind: bytes, content: bytes) -> bytes:
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def png(width: int, height: int) -> bytes:
    """A PNG whose header states a size, without pixels."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b""))


# The content of the file, and what the error says.
BROKEN = {
    "400-megapixels": (png(20_000, 20_000), "(400000000 pixels) exceeds limit"),
    "cut-in-its-header": (png(40, 30)[:20], "Truncated File Read"),
}


@pytest.fixture
def data(tmp_path) -> Path:
    """A data set of one image of 40 x 30 px, ``images/a.jpg``, with one box; an empty result."""
    (tmp_path / "images").mkdir()
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(tmp_path / "images" / "a.jpg")
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 40, "height": 30}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9]}],
        "categories": [{"id": 1, "name": "x"}],
    }
    (tmp_path / "d.json").write_text(json.dumps(content))
    (tmp_path / "results.json").write_text("[]")
    boxes = [{"tag": "person", "fbox": [1, 1, 9, 9]}]
    (tmp_path / "a.odgt").write_text(json.dumps({"ID": "a", "gtboxes": boxes}))
    return tmp_path


def dataset(data: Path) -> str:
    return f"{data}/d.json:{data}/images"


# The words of each program that reads images.
PROGRAMS: dict[str, Any] = {
    "tools/check_dataset.py": lambda d: [dataset(d), "--workers", "0"],
    "tools/visualize_json_results.py": lambda d: [
        "--input", f"{d}/results.json", "--dataset", dataset(d), "--output", f"{d}/sheet.png",
    ],
    "tools/convert_to_coco.py": lambda d: [
        "crowdhuman", "--annotations", f"{d}/a.odgt", "--images", f"{d}/images",
        "--output", f"{d}/new.json",
    ],
    "demo/demo.py": lambda d: [
        "--config-file", "c.yaml", "--input", f"{d}/images/a.jpg", "--output", f"{d}/out",
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("program", PROGRAMS)
def test_one_line_names_the_image(data, capsys, program, kind):
    content, why = BROKEN[kind]
    (data / "images" / "a.jpg").write_bytes(content)
    script = demo if program == "demo/demo.py" else load_script(program)
    with pytest.raises(SystemExit) as stop:
        script.main(PROGRAMS[program](data))
    told = "".join(capsys.readouterr())
    assert stop.value.code in (1, 2)
    assert f"Image '{data}/images/a.jpg' cannot be read: " in told and why in told
    assert "Traceback" not in told


@pytest.mark.parametrize("kind", BROKEN)
def test_pictures_of_the_assignment_name_it(data, kind):
    (data / "images" / "a.jpg").write_bytes(BROKEN[kind][0])
    assignment = load_script("tools/visualize_assignment.py")
    examples = load_script("tools/_shared/examples.py")
    name = f"^Image '{data}/images/a.jpg' cannot be read: "
    with pytest.raises(UnreadableImageError, match=name):
        assignment.given_example(f"{data}/images/a.jpg", [], ["x"])
    with pytest.raises(UnreadableImageError, match=name):
        examples.find_examples(CocoDetection(find_dataset(dataset(data))), None, 1)


def test_an_image_of_another_size_is_not_drawn(data, capsys):
    Image.fromarray(np.zeros((40, 30, 3), np.uint8)).save(data / "images" / "a.jpg")
    script = load_script("tools/visualize_json_results.py")
    with pytest.raises(SystemExit) as stop:
        script.main(PROGRAMS["tools/visualize_json_results.py"](data))
    assert stop.value.code == 2 and "30 x 40 px" in capsys.readouterr().err
    examples = load_script("tools/_shared/examples.py")
    with pytest.raises(UnreadableImageError, match="30 x 40 px .* says 40 x 30"):
        examples.find_examples(CocoDetection(find_dataset(dataset(data))), None, 1)
