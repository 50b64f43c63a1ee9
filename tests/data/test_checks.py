"""What the checks of a data set find."""

from __future__ import annotations

from typing import Any

import pytest
from helpers.checked_data import GOOD, NAN, content, write
from PIL import Image

from onenet.data import checks
from onenet.data.annotations import read_annotations
from onenet.data.checks import Finding, Verdict, check_objects, check_pixels
from onenet.data.sources import DatasetSource
from onenet.errors import DatasetError

REJECTED, DROPPED, DOUBTFUL, TAKEN = Verdict


def found(data: dict[str, Any]) -> dict[str, tuple[Verdict, int, tuple[str, ...]]]:
    """Findings by the first three words of their kind; those "without an object" are left out."""
    findings = check_objects(data, read_annotations(data))
    return {
        " ".join(f.kind.split()[:3]): (f.verdict, f.count, f.examples)
        for f in findings
        if not f.kind.endswith("without an object")
    }


@pytest.mark.parametrize(
    "box", [[1, 1, 0, 5], [1, 1, 5, -1], [NAN, 1, 5, 5], [1, 1, float("inf"), 5], [1e39, 1, 5, 5]]
)
def test_boxes_without_a_size(box):
    (verdict, count, examples) = found(content(GOOD, box))["boxes without a"]
    assert (verdict, count) == (DROPPED, 1)
    assert examples == (f"annotation 51 of 'a.png', bbox {box}",)


@pytest.mark.parametrize("box", [[40, 1, 5, 5], [1, 30, 5, 5], [-5, 1, 5, 5], [1, -9, 5, 5]])
def test_boxes_wholly_outside(box):
    assert found(content(box, GOOD)) == {
        "boxes wholly outside": (DROPPED, 1, (f"annotation 50 of 'a.png', bbox {box}",))
    }


@pytest.mark.parametrize("box", [[-1, 1, 5, 5], [36, 1, 5, 5], [1, 1, 5, 29.5]])
def test_boxes_reaching_beyond(box):
    ((kind, (verdict, count, _)),) = found(content(box, GOOD)).items()
    assert (kind, verdict, count) == ("boxes that extend", TAKEN, 1)


def test_boxes_on_the_border_are_nothing_to_speak_of():
    assert found(content([0, 0, 40, 30], [0, 25, 1, 5])) == {}


def test_repeated_boxes():
    other = content(GOOD, [2, 2, 5, 5], GOOD, [1, 1, 5, 5.0], GOOD)
    other["annotations"][4]["category_id"] = 3
    (verdict, count, examples) = found(other)["boxes with the"]
    assert (verdict, count) == (TAKEN, 2)
    assert [text.split()[1] for text in examples] == ["52", "53"]


def test_corners_instead_of_sizes():
    corners = [[10, 10, 30, 25], [5, 8, 40, 30], [20, 20, 39, 29], [1, 1, 5, 6], [30, 2, 40, 9]]
    assert found(content(*corners))["boxes, all of"][:2] == (DOUBTFUL, 5)
    assert "boxes, all of" not in found(content(*corners[:4]))  # too few to say
    assert "boxes, all of" not in found(content(*corners, [20, 1, 5, 5]))  # as corners: none


def test_shares_instead_of_pixels():
    shares = [[0.1 * i, 0.2, 0.3, 0.5] for i in range(6)]
    (verdict, count, _) = found(content(*shares))["boxes, all of"]
    assert (verdict, count) == (DOUBTFUL, 6)
    assert found(content(*shares, [2, 2, 5, 5])) == {}


def test_crowds_names_and_files():
    data = content(GOOD)
    data["annotations"].append({**data["annotations"][0], "id": 9, "iscrowd": 1})
    data["annotations"].append({**data["annotations"][0], "id": 8, "iscrowd": 1, "bbox": [0] * 4})
    data["categories"][1]["name"] = "cat"
    data["images"][1]["file_name"] = "a.png"
    assert {kind: entry[:2] for kind, entry in found(data).items()} == {
        "boxes without a": (DROPPED, 1),
        "crowd regions, which": (TAKEN, 1),
        "class names used": (DOUBTFUL, 1),
        "files listed as": (DOUBTFUL, 1),
    }


def test_what_has_no_object_is_named():
    data = content(GOOD)
    findings = check_objects(data, read_annotations(data))
    assert findings == [
        Finding(TAKEN, "classes without an object", 1, ("'ant'",)),
        Finding(TAKEN, "images without an object", 1, ("'b.png'",)),
    ]
    assert str(findings[1]) == "taken: images without an object (1), such as 'b.png'"


def test_nothing_at_all():
    data = content(images=[])
    assert [f.kind for f in check_objects(data, read_annotations(data))] == [
        "classes without an object"
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_images_are_read_in_order(tmp_path, workers):
    data = content(
        images=[{"id": i, "file_name": f"{i}.png", "width": 9, "height": 5} for i in range(40)]
    )
    write(tmp_path, data)
    folder = tmp_path / "images"
    (folder / "3.png").write_bytes(b"")
    Image.new("RGB", (5, 9)).save(folder / "17.png")
    source = DatasetSource("mine", tmp_path / "d.json", folder)
    results = list(check_pixels(source, data["images"], workers))
    assert [i for i, result in enumerate(results) if result] == [3, 17]
    assert results[3][0] == "images that cannot be read" and "3.png' cannot be" in results[3][1]
    assert results[17][0].startswith("images of another size") and "5 x 9 px" in results[17][1]


def die(*_: Any) -> None:
    import os

    os._exit(9)


def test_a_process_that_dies_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "read_image", die)  # forked processes inherit this
    source = DatasetSource("mine", tmp_path / "d.json", tmp_path)
    with pytest.raises(DatasetError, match="A process reading images of .* died.*/dev/shm has"):
        list(check_pixels(source, content()["images"], workers=1))


def test_processes_that_cannot_be_started(tmp_path, monkeypatch):
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")  # semaphores lie in /dev/shm, too

    monkeypatch.setattr("multiprocessing.process.BaseProcess.start", fail)
    source = DatasetSource("mine", tmp_path / "d.json", tmp_path)
    told = (
        r"--workers 1: .* cannot be started \(No space left on device\)\. /dev/shm .* --workers 0"
    )
    with pytest.raises(DatasetError, match=told):
        list(check_pixels(source, content()["images"], workers=1))
