"""Training with averaged weights, in bfloat16: what is saved, evaluated and resumed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from helpers.runs import assert_same, load, train, training_of, write_config

FAST = {
    "SOLVER__MAX_ITER": 3,
    "SOLVER__CHECKPOINT_PERIOD": 1,
    "SOLVER__OPTIMIZER": "ADAMW",
    "SOLVER__AMP__ENABLED": True,
    "INPUT__MIN_SIZE_TRAIN": [32],
    "INPUT__CROP__ENABLED": False,
}


@pytest.fixture(scope="module")
def averaged(shapes, tmp_path_factory) -> tuple[Path, dict[str, float]]:
    """A run of 3 iterations with an average, saved after each and evaluated at the end."""
    folder = tmp_path_factory.mktemp("averaged")
    return folder, train(write_config(folder, shapes, MODEL_EMA__ENABLED=True, **FAST))


def test_the_average_is_of_all_iterations(averaged):
    first, second = (load(averaged[0] / "run" / f"model_000000{i}.pth") for i in (0, 1))
    assert first["ema"]["updates"] == 1 and second["ema"]["updates"] == 2
    moved = 0
    for name, before in first["ema"]["model"].items():
        new, after = second["model"][name], second["ema"]["model"][name]
        if before.is_floating_point():
            torch.testing.assert_close(after, before + 9 / 11 * (new - before))
            moved += not torch.equal(after, new)
        else:
            assert torch.equal(after, new)
    assert moved > 100


def test_the_final_model_is_the_average_and_says_so(averaged):
    run = averaged[0] / "run"
    final, last = load(run / "model_final.pth"), load(run / "model_0000002.pth")
    assert (
        set(final) == {"model", "class_names", "config", "weights", "run"}
        and final["weights"] == "ema"
    )
    assert_same(final["model"], last["ema"]["model"])
    assert not torch.equal(*(c["model"]["head.feat1.weight"] for c in (final, last)))
    log = (run / "log.txt").read_text()
    assert log.count("Evaluating the averaged weights") == 1
    assert "the averaged weights are in" in log


@pytest.mark.parametrize("file", ["model_final.pth", "model_0000002.pth"])
def test_the_average_is_what_is_loaded(averaged, tmp_path, file):
    folder, found = averaged
    words = ("MODEL.WEIGHTS", folder / "run" / file, "OUTPUT_DIR", tmp_path)
    assert train(folder / "tiny.yaml", "--eval-only", *words) == pytest.approx(found, nan_ok=True)
    assert "a moving average (EMA), from" in (tmp_path / "log.txt").read_text()


def test_averaging_does_not_disturb_the_training(averaged, shapes, tmp_path):
    train(write_config(tmp_path, shapes, **FAST))
    with_average = training_of(averaged[0] / "run" / "model_0000002.pth")
    without = training_of(tmp_path / "run" / "model_0000002.pth")
    del with_average["ema"]
    assert_same(with_average, without)
    assert set(load(tmp_path / "run" / "model_final.pth")) == {
        "model",
        "class_names",
        "config",
        "run",
    }


def test_a_resumed_average_ends_like_an_uninterrupted_one(averaged, tmp_path):
    source, run = averaged[0] / "run", tmp_path / "run"
    run.mkdir()
    shutil.copy(source / "model_0000000.pth", run)
    (run / "last_checkpoint").write_text("model_0000000.pth")
    train(averaged[0] / "tiny.yaml", "--resume", "OUTPUT_DIR", run, "DATASETS.TEST", "()")
    for file in ("model_0000002.pth", "model_final.pth"):
        assert_same(training_of(run / file), training_of(source / file))


def test_an_average_cannot_come_or_go_on_the_way(averaged, tmp_path, capsys):
    run = shutil.copytree(averaged[0] / "run", tmp_path / "run")
    words = ("--resume", "OUTPUT_DIR", run, "MODEL_EMA.ENABLED", False)
    with pytest.raises(SystemExit) as stop:
        train(averaged[0] / "tiny.yaml", *words)
    assert stop.value.code == 2
    told = "cannot be resumed with this config: MODEL_EMA.ENABLED is False, its run had True."
    assert told in capsys.readouterr().err


def test_checkpoints_do_not_tell_the_memory_format(averaged):
    content = load(averaged[0] / "run" / "model_0000002.pth")
    states = content["optimizer"]["state"].values()
    tensors = [*content["model"].values(), *content["ema"]["model"].values()]
    tensors += [value for state in states for value in state.values()]
    assert len(tensors) > 500 and all(tensor.is_contiguous() for tensor in tensors)
