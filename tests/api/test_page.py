"""The page's parts, without a browser: the models that it offers, its pictures and its truth."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.runs import trained

from onenet.api.detections import ImageDetections
from onenet.api.page import main as page
from onenet.api.page.models import Models
from onenet.api.page.pictures import (
    ASSIGNED,
    assignment_rows,
    draw_duplicates,
    duplicates_of,
    rows_of,
    summary,
)
from onenet.api.page.truth import Truth
from onenet.errors import CheckpointError, ConfigError, DatasetError


@pytest.fixture(scope="module")
def model(shapes, tmp_path_factory) -> tuple[Path, Path]:
    """A config and a checkpoint, in a folder with a second checkpoint and an exported file."""
    folder = tmp_path_factory.mktemp("page")
    config, weights = trained(folder, shapes)
    (folder / "run" / "deep").mkdir(parents=True)
    (folder / "run" / "model_final.pth").write_bytes(weights.read_bytes())
    (folder / "run" / "deep" / "small.onnx").touch()
    (folder / "run" / "model_0000005.pth").touch()  # a checkpoint on the way is not offered
    return config, weights


@pytest.fixture
def found() -> ImageDetections:
    """Two objects; the second detection of the first one is a duplicate."""
    boxes = [[10, 10, 30, 30], [40, 40, 60, 60], [11, 10, 31, 30], [11, 10, 31, 30]]
    return ImageDetections(
        np.array(boxes, np.float32),
        np.array([0.9, 0.8, 0.7, 0.6], np.float32),
        np.array([0, 0, 0, 1]),
        np.ones(4, np.int64),
        ["a <b>", "other"],
        (64, 64),
        _pixels=np.full((64, 64, 3), 255, np.uint8),
    )


def test_folders_are_searched_for_what_trainings_leave(model):
    config, weights = model
    folder = config.parent / "run"
    models = Models([str(weights), str(folder), str(weights)], str(config))
    assert models.names == [
        str(weights),
        str(folder / "model_final.pth"),
        str(folder / "deep" / "small.onnx"),
    ]
    assert models.checkpoints == models.names[:2]


@pytest.mark.parametrize(
    ("place", "message"),
    [("nowhere", "--models {}: no such file or folder"), ("", "the folder holds none of model_")],
)
def test_places_without_models(tmp_path, place, message):
    path = tmp_path / place
    with pytest.raises(CheckpointError, match=message.format(path)):
        Models([str(path)])


def test_what_the_page_does_not_offer_is_not_loaded(model, tmp_path):
    config, weights = model
    other = tmp_path / "other.pth"
    other.write_bytes(weights.read_bytes())
    models = Models([str(weights)], str(config))
    for name in (str(other), "/etc/passwd", f"{weights}/../model.pth"):
        with pytest.raises(CheckpointError, match="the page does not offer"):
            models.load(name)


def test_the_last_two_models_stay_in_memory(model, tmp_path):
    config, weights = model
    copies = [tmp_path / f"{n}.pth" for n in range(3)]
    for copy in copies:
        copy.write_bytes(weights.read_bytes())
    models = Models([str(copy) for copy in copies], str(config), engine="lightning")
    one, two, three = models.names
    first, second = models.load(one), models.load(two)
    assert models.load(one) is first
    models.load(three)  # in place of the second, used longest ago
    assert models.load(one) is first and models.load(two) is not second


def test_duplicates_are_what_nms_would_remove(found):
    assert duplicates_of(found).tolist() == [False, False, True, False]  # the last: another class
    assert summary(found) == "**4** detections, **1** duplicate"
    assert summary(found[:1]) == "**1** detection, **0** duplicates"
    assert summary(found[:0]) == "**0** detections, **0** duplicates"
    alone = np.asarray(draw_duplicates(found[:2]))
    assert (np.asarray(draw_duplicates(found)) != alone).any()


def test_a_row_for_each_detection(found):
    assert rows_of(found)[1] == ["a <b>", 0.8, 40.0, 40.0, 60.0, 60.0]
    assert rows_of(found[:0]) == []


def test_samples_of_an_image_with_ground_truth(model, shapes):
    config, weights = model
    data = f"{shapes}/annotations/instances_val.json:{shapes}/val"
    truth = Truth(data, Models([str(weights)], str(config)))
    assert 1 <= len(truth) <= 6 and truth.image(1).shape == (64, 64, 3)
    assignment = truth.assign(str(weights), 1)
    rows = assignment_rows(assignment, truth.class_names)
    assert len(rows) == len(assignment.targets) > 0
    number, name, x, y, inside, cost, *terms = rows[0]
    assert len(ASSIGNED) == 6 and number == 1 and name in truth.class_names
    assert 0 <= x <= 64 and 0 <= y <= 64 and inside in ("yes", "no")
    assert cost == pytest.approx(sum(terms), abs=2e-3)
    assert cost == pytest.approx(float(assignment.cost[:, 0].min()), abs=1e-3)
    for wrong in (0, len(truth) + 1):
        with pytest.raises(DatasetError, match=f"there is no image {wrong}"):
            truth.image(wrong)
    with pytest.raises(DatasetError, match="not a checkpoint that the page offers"):
        truth.assign("/etc/passwd", 1)


def test_other_classes_and_no_objects_are_refused(model, shapes, tmp_path):
    config, weights = model
    content = json.loads(Path(shapes, "annotations", "instances_val.json").read_text())
    content["categories"].append({"id": 99, "name": "new"})
    (tmp_path / "more.json").write_text(json.dumps(content))
    truth = Truth(f"{tmp_path}/more.json:{shapes}/val", Models([str(weights)], str(config)))
    with pytest.raises((ConfigError, DatasetError), match="7 classes"):
        truth.assign(str(weights), 1)
    content["annotations"] = []
    (tmp_path / "none.json").write_text(json.dumps(content))
    with pytest.raises(DatasetError, match="has no image with objects"):
        Truth(f"{tmp_path}/none.json:{shapes}/val", Models([str(weights)], str(config)))


def refused(capsys, *words: str) -> str:
    with pytest.raises(SystemExit) as stop:
        page.main(["--models", *words])
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_what_the_command_refuses(model, capsys, monkeypatch):
    weights = str(model[1])
    assert "must be between 0 and 1, got 2" in refused(
        capsys, weights, "--confidence-threshold", "2"
    )
    assert "--port must be at most 65535" in refused(capsys, weights, "--port", "70000")
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert "pip install 'onenet[page]'" in refused(capsys, weights)
