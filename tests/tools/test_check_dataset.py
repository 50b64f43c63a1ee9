"""tools/check_dataset.py: what it finds, what training does about it, and its exit status."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.project import load_script
from helpers.runs import edit_json, write_config
from PIL import Image

from onenet.data import checks
from onenet.data.annotations import read_annotations
from onenet.data.checks import Finding, Verdict, check_objects, check_pixels
from onenet.data.sources import DatasetSource
from onenet.errors import DatasetError

tool = load_script("tools/check_dataset.py")

REJECTED, DROPPED, DOUBTFUL, TAKEN = Verdict


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


def found(data: dict[str, Any]) -> dict[str, tuple[Verdict, int, tuple[str, ...]]]:
    """Findings by the first three words of their kind; those "without an object" are left out."""
    findings = check_objects(data, read_annotations(data))
    return {
        " ".join(f.kind.split()[:3]): (f.verdict, f.count, f.examples)
        for f in findings
        if not f.kind.endswith("without an object")
    }


NAN, GOOD = float("nan"), [1, 1, 5, 5]


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


# -- pixels ----------------------------------------------------------------------------------


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


def test_pixels_that_become_white(tmp_path, capsys):
    name = write(tmp_path, content(GOOD))
    for file, mode, values in (("a", np.uint16, (0, 65535)), ("b", np.uint16, (0, 255))):
        image = np.linspace(*values, 1200).reshape(30, 40).astype(mode)
        Image.fromarray(image).save(tmp_path / "images" / f"{file}.png")
    with pytest.raises(SystemExit) as stop:
        tool.main([name, "--workers", "0"])
    out = capsys.readouterr().out
    assert stop.value.code == 1
    assert "taken, but looks wrong: 1 images whose values above 255 become white" in out
    assert "'a.png'" in out


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


# -- the program -----------------------------------------------------------------------------


def status(*words: Any) -> int:
    with pytest.raises(SystemExit) as stop:
        tool.main([*map(str, words), "--workers", "0"])
    return stop.value.code


def test_a_clean_data_set(shapes, capsys):
    name = f"{shapes}/annotations/instances_train.json:{shapes}/train"
    assert status(name) == 0
    out = capsys.readouterr().out
    assert out.startswith(name) and out.endswith("Training takes everything.\n")


def test_what_is_left_out_gives_1(tmp_path, capsys):
    name = write(tmp_path, content(GOOD, [1, 1, 0, 5], [1, 1, 0, 6], [2, 2, -1, 5], [0, 0, 0, 0]))
    assert status(name) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "  left out: 4 boxes without a finite, positive size"
    assert lines[2:6] == [
        "      annotation 51 of 'a.png', bbox [1, 1, 0, 5]",
        "      annotation 52 of 'a.png', bbox [1, 1, 0, 6]",
        "      annotation 53 of 'a.png', bbox [2, 2, -1, 5]",
        "      …",
    ]
    assert lines[-1] == "Training runs, but look at the findings above."


def test_all_kinds_of_rejections_are_told_at_once(tmp_path, capsys):
    data = content(GOOD, GOOD)
    data["annotations"][1]["category_id"] = 99
    data["annotations"].append("text")
    data["images"] += [
        {"id": 30, "file_name": name, "width": 5, "height": 5} for name in ("c.png", "d.png")
    ]
    good = write(tmp_path, data)
    (tmp_path / "images/b.png").write_bytes(b"none")
    (tmp_path / "images/c.png").unlink()
    (tmp_path / "images/a.png").unlink()
    (tmp_path / "images/a.png").symlink_to("/dev/null")
    assert status(good) == 2
    out = capsys.readouterr().out
    for line in (
        "rejected: 1 annotations: unknown category_id",
        "annotations[1] (id 51): 'category_id' is 99, but no entry of 'categories' has this id",
        "rejected: 1 annotations: not a JSON object",
        "rejected: 1 images: id used twice",
        "rejected: 1 images that are missing",
        "rejected: 1 images behind a link out of the image folder",
        "rejected: 1 images that cannot be read",
        "b.png' cannot be read",
    ):
        assert line in out
    assert out.index("rejected") < out.index("taken") and out.endswith("Training stops.\n")


def test_a_file_that_is_no_json_is_a_rejection(tmp_path, capsys):
    name = write(tmp_path, content(GOOD))
    (tmp_path / "d.json").write_text("{")
    assert status(name) == 2
    assert "d.json is not valid JSON" in capsys.readouterr().out


def test_the_worst_data_set_counts(shapes, tmp_path, capsys):
    clean = f"{shapes}/annotations/instances_val.json:{shapes}/val"
    assert status(clean, write(tmp_path, content(GOOD, [1, 1, 0, 5])), clean) == 1


def config(folder: Path, shapes: Path, data: Path, **changes: Any) -> Path:
    name = f"{data}/annotations/instances_train.json:{data}/train"
    return write_config(folder, shapes, DATASETS__TRAIN=[name], **changes)


def test_the_data_sets_of_a_config(shapes, tmp_path, capsys):
    path = config(tmp_path, shapes, shapes)
    assert status("--engine", "lightning", "--config-file", path) == 0
    captured = capsys.readouterr()
    assert captured.out.count("/annotations/") == 2 and "Engine: onenet.lightning" in captured.err
    opts = ("--opts", "MODEL.OneNet.NUM_CLASSES", "80")
    with pytest.raises(SystemExit) as stop:
        tool.main(["--engine", "lightning", "--config-file", str(path), "--workers", "0", *opts])
    assert stop.value.code == 2 and "NUM_CLASSES 6" in capsys.readouterr().out


def lose(content: dict[str, Any]) -> None:
    """Another first image of those with objects, which is not there."""
    with_objects = {a["image_id"] for a in content["annotations"]}
    image = next(i for i in content["images"] if i["id"] in with_objects)
    image["file_name"] = "gone.jpg"


def test_skip_unreadable_holds_for_training_alone(shapes, tmp_path, capsys):
    data = edit_json(shapes, tmp_path / "lost", "train", lose)
    for skip, code in ((False, 2), (True, 1)):
        path = config(tmp_path, shapes, data, DATALOADER__SKIP_UNREADABLE=skip)
        assert status("--engine", "lightning", "--config-file", path) == code
        assert "images that are missing" in capsys.readouterr().out
    name = f"{data}/annotations/instances_train.json:{data}/train"
    tested = write_config(tmp_path, shapes, DATASETS__TEST=[name], DATALOADER__SKIP_UNREADABLE=True)
    assert status("--engine", "lightning", "--config-file", tested) == 2


def test_only_what_is_trained_on_needs_annotations(shapes, tmp_path, capsys):
    data = edit_json(shapes, tmp_path / "bare", "train", lambda content: content.pop("annotations"))
    name = f"{data}/annotations/instances_train.json:{data}/train"
    tested = write_config(tmp_path, shapes, DATASETS__TEST=[name])
    assert status("--engine", "lightning", "--config-file", tested) == 0
    assert "12 images without an object" in capsys.readouterr().out
    for words in ((name,), ("--config-file", config(tmp_path, shapes, data))):
        assert status("--engine", "lightning", *words) == 2
        assert "'annotations' is missing" in capsys.readouterr().out


def test_images_that_training_does_not_read(shapes, tmp_path, capsys):
    def empty(content: dict[str, Any]) -> None:
        gone = copy.deepcopy(content["images"][0])
        content["images"].append({**gone, "id": 999, "file_name": "gone.jpg"})

    data = edit_json(shapes, tmp_path / "empty", "train", empty)
    for keep, code in ((False, 0), (True, 2)):
        path = config(tmp_path, shapes, data, DATALOADER__FILTER_EMPTY_ANNOTATIONS=not keep)
        assert status("--engine", "lightning", "--config-file", path) == code


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "give data sets, or a --config-file"),
        (["nowhere"], "Unknown data set 'nowhere'"),
        (["x", "--workers", "-1"], "--workers must be 0 or more, got -1"),
        (["x", "--opts", "SEED", "1"], "--config-file, which is missing"),
        (["--config-file", "none.yaml"], "none.yaml does not exist"),
    ],
)
def test_wrong_command_lines(capsys, words, told):
    with pytest.raises(SystemExit) as stop:
        tool.main(["--engine", "lightning", *words])
    error = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2 and error.startswith("error: ") and told in error


def test_help_tells_the_exit_status(capsys):
    with pytest.raises(SystemExit):
        tool.main(["--help"])
    assert "exit status: 0 if training takes everything" in " ".join(
        capsys.readouterr().out.split()
    )
