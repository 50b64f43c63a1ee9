"""Trainings that are started, resumed and evaluated in one folder, with both engines."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.runs import CLASSES, edit_json, load, metrics, train, write_config

from onenet.checkpoints.files import save_checkpoint
from onenet.lightning.config import load_cfg
from onenet.training.run_folder import RunFolder

QUICK = {
    "SOLVER__MAX_ITER": 2,
    "SOLVER__CHECKPOINT_PERIOD": 1,
    "SOLVER__WARMUP_ITERS": 0,
    "DATASETS__TEST": [],
}
LAST = "model_0000001.pth"


@pytest.fixture(scope="module")
def finished(engine, shapes, tmp_path_factory) -> Path:
    """The config of a run of two iterations, saved after each, in the folder ``run`` beside it."""
    config = write_config(tmp_path_factory.mktemp("finished"), shapes, **QUICK)
    engine(config)
    return config


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    """A copy of the run's folder."""
    return shutil.copytree(finished.parent / "run", tmp_path / "run")


def refused(engine, capsys, *words: Any) -> str:
    with pytest.raises(SystemExit) as stop:
        engine(*words)
    assert stop.value.code == 2
    (line,) = (s for s in capsys.readouterr().err.splitlines() if s.startswith("error: "))
    return line


def files(folder: Path) -> dict[str, bytes]:
    """What a run has in its folder, but for its log and lock."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (".lock", "log.txt")
    }


def optimizer(content: dict[str, Any]) -> dict[str, Any]:
    return content.get("optimizer") or content["trainer"]["_trainer"]["optimizer"]


# A run that is resumed


def test_changed_settings_are_applied_and_logged(engine, finished, copied):
    words = ("SOLVER.BASE_LR", 1e-30, "SOLVER.WEIGHT_DECAY", 0.5, "SOLVER.MOMENTUM", 0.5)
    more = ("SOLVER.MAX_ITER", 4, "SOLVER.GAMMA", 0.2, "SOLVER.STEPS", "(3,)")
    engine(finished, "--resume", "OUTPUT_DIR", copied, *words, *more)
    log = (copied / "log.txt").read_text()
    for change in (
        "SOLVER.BASE_LR 0.001 -> 1e-30",
        "SOLVER.WEIGHT_DECAY 0.0001 -> 0.5",
        "SOLVER.MOMENTUM 0.9 -> 0.5",
        "SOLVER.MAX_ITER 2 -> 4",
        "SOLVER.STEPS [5] -> [3]",
    ):
        assert f"Changed from iteration 3 on: {change}" in log
    assert log.count("Changed from") == 6
    before, after = load(copied / LAST), load(copied / "model_0000003.pth")
    for group in optimizer(after)["param_groups"]:
        assert (group["weight_decay"], group["momentum"]) == (0.5, 0.5)
        assert group["lr"] == pytest.approx(0.2e-30) and group["initial_lr"] == 1e-30
    name = "head.feat1.weight"
    assert torch.equal(before["model"][name], after["model"][name])  # as at a rate of nothing
    momenta = [list(optimizer(c)["state"].values())[0]["momentum_buffer"] for c in (before, after)]
    assert not torch.equal(*momenta)
    assert metrics(copied)[-1]["lr"] == pytest.approx(0.2e-30)
    assert "WEIGHT_DECAY: 0.5\n" in (copied / "config.yaml").read_text()
    assert after["run"] == before["run"] and after["config"]["SOLVER.WEIGHT_DECAY"] == 0.5


REFUSED = {
    "SOLVER.OPTIMIZER": ("ADAMW", "'ADAMW', its run had 'SGD'"),
    "SEED": (12, "12, its run had 11"),
    "MODEL.OneNet.DCN": (True, "True, its run had False"),
    "MODEL_EMA.ENABLED": (True, "True, its run had False"),
    "INPUT.FORMAT": ("BGR", "'BGR', its run had 'RGB'"),
    "SOLVER.MAX_ITER": (1, "1, but 2 iterations are done"),
    "SOLVER.IMS_PER_BATCH": (2, "2, its run had 4"),
}


@pytest.mark.parametrize("key", REFUSED)
def test_what_may_not_change_is_refused_by_its_key(engine, finished, copied, capsys, key):
    value, told = REFUSED[key]
    before = files(copied)
    words = (finished, "--resume", "OUTPUT_DIR", copied, key, value, "SOLVER.BASE_LR", 0.5)
    if key == "SOLVER.IMS_PER_BATCH" and engine is not train:
        engine(*words)  # Detectron2 draws new images after a resume
        log = (copied / "log.txt").read_text()
        assert "Changed from iteration 3 on: SOLVER.IMS_PER_BATCH 4 -> 2" in log
        return
    error = refused(engine, capsys, *words)
    assert f"{copied / 'model_'}" in error and f"this config: {key} is {told}. Resume" in error
    assert f"start a new run in another OUTPUT_DIR with MODEL.WEIGHTS {copied}" in error
    assert {k: v for k, v in files(copied).items() if "tfevents" not in k} == {
        k: v for k, v in before.items() if "tfevents" not in k
    }


def rename(content: dict[str, Any]) -> None:
    content["categories"][0]["name"] = "disc"


def lose(content: dict[str, Any]) -> None:
    lost = content["images"].pop(0)["id"]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != lost]


@pytest.mark.parametrize("change", [rename, lose])
def test_other_data_is_refused(engine, finished, copied, shapes, tmp_path, capsys, change):
    if change is lose and engine is not train:
        pytest.skip("Detectron2 draws new images after a resume")
    data = edit_json(shapes, tmp_path / "data", "train", change)
    sets = ("DATASETS.TRAIN", f"('{data}/annotations/instances_train.json:{data}/train',)")
    error = refused(engine, capsys, finished, "--resume", "OUTPUT_DIR", copied, *sets)
    told = "classes: disc, ring" if change is rename else "images: 11; its run had 12"
    assert f"DATASETS.TRAIN has other {told}" in error


def test_the_same_data_in_another_place_is_taken(engine, finished, copied, shapes, tmp_path):
    data = shutil.copytree(shapes, tmp_path / "data")
    sets = ("DATASETS.TRAIN", f"('{data}/annotations/instances_train.json:{data}/train',)")
    engine(finished, "--resume", "OUTPUT_DIR", copied, *sets, "SOLVER.MAX_ITER", 3)
    assert "Changed from iteration 3 on: DATASETS.TRAIN [" in (copied / "log.txt").read_text()
    assert load(copied / "model_0000002.pth")["iteration"] == 2


def test_a_run_of_an_earlier_version_is_resumed_and_gets_an_id(engine, finished, copied):
    for path in copied.glob("*.pth"):
        content = {k: v for k, v in load(path).items() if k not in ("run", "config", "images")}
        save_checkpoint(path, content)
    (copied / "run.json").unlink()
    words = ("SOLVER.MAX_ITER", 3, "SOLVER.BASE_LR", 1e-4)
    engine(finished, "--resume", "OUTPUT_DIR", copied, *words)
    log = (copied / "log.txt").read_text()
    assert "is of a version without run ids: taking all checkpoints in" in log
    assert f"does not hold the config of its run: comparing with {copied}/config.yaml" in log
    assert "Changed from iteration 3 on: SOLVER.BASE_LR 0.001 -> 0.0001" in log
    run_id = json.loads((copied / "run.json").read_text())["id"]
    assert load(copied / "model_0000002.pth")["run"] == run_id
    # As weights, too.
    weights = ("MODEL.WEIGHTS", copied / LAST)
    engine(finished, *weights, "OUTPUT_DIR", copied.parent / "other", "SOLVER.MAX_ITER", 1)


# A folder that holds a run


def test_starting_again_is_refused_and_changes_nothing(engine, finished, copied, capsys):
    before, log = files(copied), (copied / "log.txt").read_bytes()
    error = refused(engine, capsys, finished, "OUTPUT_DIR", copied)
    run_id = json.loads((copied / "run.json").read_text())["id"]
    assert error.startswith(f"error: OUTPUT_DIR {copied} holds run {run_id} already")
    assert all(way in error for way in ("--resume", "another OUTPUT_DIR", "--overwrite"))
    assert files(copied) == before and (copied / "log.txt").read_bytes() == log


def test_overwriting_starts_over(engine, finished, copied):
    first = load(copied / LAST)
    engine(finished, "--overwrite", "OUTPUT_DIR", copied, "SOLVER.MAX_ITER", 1)
    second = load(copied / "model_0000000.pth")
    assert second["run"] != first["run"] and not (copied / LAST).exists()
    assert json.loads((copied / "run.json").read_text())["id"] == second["run"]
    assert [line["iteration"] for line in metrics(copied)] == [1 if engine is train else 0]
    assert torch.equal(
        second["model"]["head.feat1.weight"],
        load(finished.parent / "run" / "model_0000000.pth")["model"]["head.feat1.weight"],
    )


def test_a_folder_in_which_a_run_works_is_refused(engine, finished, copied, capsys, monkeypatch):
    before = files(copied)
    monkeypatch.setattr("onenet.training.run_folder.lock_file", lambda file: False)
    test = ("DATASETS.TEST", f"{tuple(load_cfg(finished).DATASETS.TRAIN)}")
    for flag in ("--resume", "--overwrite", "--eval-only"):
        error = refused(engine, capsys, finished, flag, "OUTPUT_DIR", copied, *test)
        assert f"OUTPUT_DIR {copied}: another run is working there" in error
    assert files(copied) == before


def test_evaluating_writes_its_config_beside_its_results(engine, finished, copied):
    before = files(copied)
    test = tuple(load_cfg(finished).DATASETS.TRAIN)
    words = ("MODEL.WEIGHTS", copied / "model_final.pth", "TEST.DETECTIONS_PER_IMAGE", 7)
    engine(finished, "--eval-only", "OUTPUT_DIR", copied, "DATASETS.TEST", f"{test}", *words)
    after = files(copied)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) >= {
        "inference/config.yaml",
        "inference/coco_instances_results.json",
    }
    assert "DETECTIONS_PER_IMAGE: 7" in (copied / "inference" / "config.yaml").read_text()
    # Training that goes on replaces these results.
    engine(finished, "--resume", "OUTPUT_DIR", copied, "SOLVER.MAX_ITER", 3)
    assert not (copied / "inference" / "config.yaml").exists()


# A run that is killed


@pytest.mark.parametrize("flag", ["--resume", None])
def test_killed_before_the_first_checkpoint(engine, finished, tmp_path, flag):
    """``--resume`` and the same command again do the same, but for the run's id."""
    folder = RunFolder(tmp_path / "run")
    with folder.held():
        folder.check(resume=False, overwrite=False)
        folder.begin("")
    flags = [flag] if flag else []
    engine(finished, *flags, "OUTPUT_DIR", tmp_path / "run", "SOLVER.MAX_ITER", 1)
    first = "model_0000000.pth"
    assert (load(tmp_path / "run" / first)["run"] == folder.run) == (flag is not None)
    folders = (tmp_path / "run", finished.parent / "run")
    ours, theirs = (load(path / first)["model"]["head.feat1.weight"] for path in folders)
    assert torch.equal(ours, theirs)


def test_a_run_that_overwrites_another_and_is_killed_does_not_go_on_from_that(
    engine, finished, copied, capsys
):
    (copied / "run.json").write_text('{"id": "second"}')
    error = refused(engine, capsys, finished, "--resume", "OUTPUT_DIR", copied)
    assert "is a checkpoint of run" in error and "holds run second" in error
    assert error.endswith("start over with --overwrite")


# Weights of another data set


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (CLASSES[1:] + CLASSES[:1], "cross, circle; here circle, ring, square, triangle, star, cr"),
        (["a", "b", "c", "d", "e", "f"], "on none of the same name (a, b, c, d, e, f; here circle"),
        (["circle", *"abcde"], "1 of them of the same name: the class layer takes over circle by"),
    ],
)
def test_fine_tuning_goes_by_the_names_of_the_classes(
    engine, finished, shapes, tmp_path, names, told
):
    weights = tmp_path / "model.pth"
    content = load(finished.parent / "run" / "model_final.pth")
    layer = content["model"]["head.cls_score.weight"]
    layer.copy_(torch.arange(1.0, 7.0)[:, None, None, None].expand_as(layer))
    save_checkpoint(weights, {"model": content["model"], "class_names": names})
    config = write_config(
        tmp_path, shapes, MODEL__WEIGHTS=str(weights), **QUICK, SOLVER__BASE_LR=1e-30
    )
    engine(config, "SOLVER.MAX_ITER", 1)
    log = (tmp_path / "run" / "log.txt").read_text()
    assert told in log
    new = load(tmp_path / "run" / "model_0000000.pth")["model"]["head.cls_score.weight"]
    for label, name in enumerate(CLASSES):
        if name in names:
            torch.testing.assert_close(new[label], layer[names.index(name)])
        else:
            assert new[label].abs().max() < 1  # of the initialisation
