"""tools/check_dataset.py: what it finds, what training does about it, and its exit status."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.checked_data import GOOD, content, write
from helpers.project import load_script
from helpers.runs import edit_json, write_config
from PIL import Image

from onenet.data.checks import Verdict

tool = load_script("tools/check_dataset.py")

REJECTED, DROPPED, DOUBTFUL, TAKEN = Verdict

# -- pixels ----------------------------------------------------------------------------------


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
        (["--config-file", "none.yaml"], "config file 'none.yaml' does not exist"),
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
