"""The assignment rule of docs/custom_assignment.md, used as it says; and ``--import``."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from helpers.project import ROOT, load_script
from helpers.runs import metrics, train, trained, unchanged_process, write_config

from onenet import MATCHER_REGISTRY, Predictions, Targets
from onenet.config.imports import import_files
from onenet.errors import ConfigError
from onenet.lightning.config import get_cfg
from onenet.lightning.trainer import Trainer
from onenet.ops.boxes import point_grid

TEXT = (ROOT / "docs" / "custom_assignment.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)
    return found


@pytest.fixture
def rule(tmp_path, monkeypatch):
    """The rule's file; it is forgotten after the test."""
    monkeypatch.setattr(sys, "path", sys.path[:])
    file = tmp_path / "inside_box.py"
    file.write_text(block("python"), encoding="utf-8")
    yield file
    sys.modules.pop("inside_box", None)
    MATCHER_REGISTRY._obj_map.pop("inside_box", None)


def as_the_doc_says(folder: Path, shapes: Path) -> Path:
    """The doc's YAML with the tests' config as its base."""
    values = yaml.safe_load(block("yaml"))
    assert (ROOT / values["_BASE_"]).is_file()
    changes = {"_BASE_": str(write_config(folder, shapes, SOLVER__MAX_ITER=3))}
    path = folder / "inside_box.yaml"
    path.write_text(yaml.safe_dump({**values, **changes, "OUTPUT_DIR": str(folder / "run")}))
    return path


def test_the_rule_takes_samples_within_the_box_if_there_are_any(rule):
    assert len(block("python").splitlines()) <= 30
    import_files([rule])
    matcher = MATCHER_REGISTRY.get("inside_box")(get_cfg())
    points = point_grid(8, 8, 4, torch.device("cpu"))  # 2, 6 … 30 px in either direction
    boxes = torch.tensor([[9.0, 9, 19, 19], [3, 3, 5, 5]])
    # The best predictions for both objects are those of the first sample, at (2, 2).
    found = torch.full((1, 64, 4), 100.0)
    found[0, 0] = boxes[0]
    predictions = Predictions(
        torch.zeros(1, 64, 2), found, points.repeat(1, 2), torch.zeros(64, dtype=torch.int64)
    )
    matches = matcher(predictions, [Targets(boxes, torch.tensor([0, 1]), (32, 32))])
    assert matches.target.tolist() == [0, 1]
    first, second = points[matches.sample].tolist()
    assert all(9 < value < 19 for value in first)
    assert second == [2, 2]


def test_the_embedded_engine_trains_with_it(rule, shapes, tmp_path, monkeypatch):
    seen = []
    start = Trainer.train
    monkeypatch.setattr(Trainer, "train", lambda self: seen.append(self) or start(self))
    train(as_the_doc_says(tmp_path, shapes), "--import", rule)
    assert type(seen[0].model.criterion.matcher) is sys.modules["inside_box"].InsideBox
    assert any("loss_ce" in line for line in metrics(tmp_path / "run"))


def test_detectron2_trains_with_it(rule, shapes, tmp_path, monkeypatch):
    pytest.importorskip("detectron2")
    from helpers.detectron2_runs import train_d2

    from onenet.d2 import Trainer

    seen = []
    start = Trainer.train
    monkeypatch.setattr(Trainer, "train", lambda self: seen.append(self) or start(self))
    train_d2(as_the_doc_says(tmp_path, shapes), "--import", rule)
    assert type(seen[0].bare_model.criterion.matcher) is sys.modules["inside_box"].InsideBox
    assert any("loss_ce" in line for line in metrics(tmp_path / "run"))


def test_its_assignment_is_drawn(rule, shapes, tmp_path, monkeypatch):
    tool = load_script("tools/visualize_assignment.py")
    _, weights = trained(tmp_path, shapes)
    history, assign_all = [], tool.assign_all
    monkeypatch.setattr(tool, "assign_all", lambda *a: history.extend(assign_all(*a)) or history)
    words = ["--import", rule, "--config-file", as_the_doc_says(tmp_path, shapes)]
    picture = tmp_path / "a.png"
    words += ["--count", 1, "--output", picture, "--opts", "MODEL.WEIGHTS", weights]
    with unchanged_process():
        tool.main(list(map(str, words)))
    assert picture.is_file()
    assert set(history[0].terms) == {"class", "L1", "GIoU", "other"}
    assert set(history[0].terms["other"].unique().tolist()) == {0.0, 1e4}


def test_a_file_is_run_once_and_finds_its_neighbours(rule, tmp_path):
    (tmp_path / "a_neighbour.py").write_text("X = 1\n")
    rule.write_text("import a_neighbour\na_neighbour.X += 1\n")
    try:
        import_files([rule, rule])
        assert sys.modules["a_neighbour"].X == 2
    finally:
        sys.modules.pop("a_neighbour", None)


@pytest.mark.parametrize(
    ("name", "there", "message"),
    [
        ("none.py", False, "none.py: expected an existing Python file"),
        (
            "rule.txt",
            True,
            "rule.txt: expected an existing Python file with a name like my_rule.py",
        ),
        ("my-rule.py", True, "my-rule.py: expected an existing Python file"),
        ("yaml.py", True, r"another module is called yaml \(.*__init__.py\); rename the file"),
        ("sys.py", True, r"another module is called sys \(built in\)"),
    ],
)
def test_files_that_cannot_be_imported(tmp_path, name, there, message):
    if there:
        (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=f"--import .*{message}"):
        import_files([tmp_path / name])


def test_a_missing_file_ends_the_program_in_a_line(shapes, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        train(write_config(tmp_path, shapes), "--import", tmp_path / "none.py")
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: --import {tmp_path}/none.py: expected an existing Python file")
