"""The best evaluation and the early end in trainings of both engines, and several processes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.runs import (
    assert_same,
    finish,
    load,
    metrics,
    refused,
    start,
    train,
    training_of,
    write_config,
)

from onenet import EVALUATOR_REGISTRY, Evaluator

BEST = {
    "TEST__EVALUATOR": "Scripted",
    "TEST__BEST_METRIC": "mine/figure",
    "TEST__EVAL_PERIOD": 1,
    "SOLVER__CHECKPOINT_PERIOD": 1,
    "SOLVER__MAX_ITER": 2,
}


MEASURED = {
    "TEST__BEST_METRIC": "val_loss_giou",
    "TEST__LOSS": True,
    "TEST__EVAL_PERIOD": 2,
    "SOLVER__CHECKPOINT_PERIOD": 2,
    "SOLVER__MAX_ITER": 4,
    "SOLVER__BASE_LR": 1e-4,
    "INPUT__MIN_SIZE_TRAIN": [32],
}


@pytest.fixture
def scripted() -> Iterator[list[float]]:
    """An evaluator whose figures are those of the list, in turn; the start of a run takes one."""
    figures: list[float] = []

    def Scripted(cfg: Any) -> Evaluator:
        return Evaluator("mine", lambda truth, results: {"figure": figures.pop(0)})

    EVALUATOR_REGISTRY.register(Scripted)
    yield figures
    EVALUATOR_REGISTRY._obj_map.pop("Scripted")


def test_the_weights_that_were_evaluated_are_kept(engine, scripted, shapes, tmp_path):
    scripted[:] = [0.0, 3.0, 2.0]
    averaged = {"MODEL_EMA__ENABLED": True, "MODEL__OneNet__AUX__ENABLED": True}
    config, run = write_config(tmp_path, shapes, **BEST, **averaged), tmp_path / "run"
    engine(config)
    content, then = load(run / "model_best.pth"), load(run / "model_0000000.pth")
    assert set(content) == {"model", "class_names", "config", "run", "weights", "best"}
    assert content["best"] == {"metric": "mine/figure", "value": 3.0, "iteration": 1}
    names = [name for name in then["ema"]["model"] if not name.startswith("aux.")]
    assert list(content["model"]) == names and len(names) < len(then["ema"]["model"])
    assert all(torch.equal(content["model"][name], then["ema"]["model"][name]) for name in names)
    log = (run / "log.txt").read_text()
    told = f"mine/figure 3 at iteration 1, kept in {run / 'model_best.pth'}"
    assert f"best so far: {told}" in log and f"Best of all evaluations: {told}" in log
    scripted[:] = [0.0]
    words = ("--eval-only", "MODEL.WEIGHTS", run / "model_best.pth", "OUTPUT_DIR", tmp_path / "e")
    engine(config, *words)
    assert "a moving average (EMA), from" in (tmp_path / "e" / "log.txt").read_text()


def test_a_training_ends_early_and_is_done(engine, scripted, shapes, tmp_path):
    scripted[:] = [0.0, 5.0, 4.0, 3.0]
    changes = {**BEST, "SOLVER__MAX_ITER": 9, "SOLVER__EARLY_STOP": 2}
    changes["SOLVER__CHECKPOINT_PERIOD"] = 1000
    config, run = write_config(tmp_path, shapes, **changes), tmp_path / "run"
    engine(config)  # with status 0
    assert not scripted  # the last evaluation is the final one
    figures = [line["mine/figure"] for line in metrics(run) if "mine/figure" in line]
    # Detectron2 writes every 20 iterations.
    assert figures in ([5.0, 4.0, 3.0], [3.0]) and (run / "model_final.pth").exists()
    assert load(run / "model_best.pth")["best"]["iteration"] == 1
    told = "SOLVER.EARLY_STOP 2: training ended after iteration 3 of 9, as 2 evaluations in a row"
    assert told in (run / "log.txt").read_text()
    scripted[:] = [0.0, 3.0]
    engine(config, "--resume")  # which evaluates once more
    assert load(run / "model_best.pth")["best"]["iteration"] == 1


@pytest.fixture(scope="module")
def measured(shapes, tmp_path_factory) -> Path:
    """The folder of a training that keeps the least loss on its test set."""
    folder = tmp_path_factory.mktemp("measured")
    train(write_config(folder, shapes, **MEASURED))
    return folder


def test_a_resumed_run_ends_with_the_same_files(measured, tmp_path):
    """From a checkpoint that was saved before the evaluation of its iteration."""
    run = tmp_path / "run"
    run.mkdir()
    for file in ("model_0000001.pth", "run.json"):
        shutil.copy(measured / "run" / file, run)
    (run / "last_checkpoint").write_text("model_0000001.pth")
    train(measured / "tiny.yaml", "--resume", "OUTPUT_DIR", run)
    for file in ("model_best.pth", "model_final.pth", "model_0000003.pth"):
        assert_same(training_of(run / file), training_of(measured / "run" / file))
    record = "model_best.json"
    assert (run / record).read_text() == (measured / "run" / record).read_text()


def test_evaluating_losses_does_not_disturb_the_training(measured, shapes, tmp_path):
    plain = {**MEASURED, "TEST__LOSS": False, "TEST__BEST_METRIC": "", "DATASETS__TEST": []}
    train(write_config(tmp_path, shapes, **plain))
    one, other = (training_of(p / "run" / "model_0000003.pth") for p in (measured, tmp_path))
    assert one.pop("hooks")["TEST.BEST_METRIC"]["iteration"] == 2
    assert_same(one, other)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("TEST.BEST_METRIC", "bbox/AQ"), "TEST.BEST_METRIC must be one of bbox/AP, bbox/AP50, "),
        (("TEST.BEST_METRIC", "val_total_loss"), "TEST.BEST_METRIC must be one of bbox/AP, "),
        (("TEST.EVAL_PERIOD", 0), "TEST.EVAL_PERIOD is 0; expected a number of iterations, as "),
        (
            ("TEST.BEST_METRIC", "", "SOLVER.EARLY_STOP", 3),
            "TEST.BEST_METRIC is ''; expected a metric, such as 'bbox/AP', as SOLVER.EARLY_STOP ",
        ),
        (("DATASETS.TEST", "()"), "TEST.BEST_METRIC is 'bbox/AP', but DATASETS.TEST [] has no"),
    ],
)
def test_what_cannot_be_compared_is_refused_at_the_start(
    engine, shapes, tmp_path, capsys, words, told
):
    changes = {"TEST__BEST_METRIC": "bbox/AP", "TEST__EVAL_PERIOD": 1}
    error = refused(engine, capsys, write_config(tmp_path, shapes, **changes), *words)
    assert error.startswith(f"error: {told}")
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.slow
def test_several_processes_end_together(shapes, tmp_path):
    """Without detections worth anything, every evaluation after the first is without gain."""
    config = write_config(
        tmp_path, shapes, TEST__BEST_METRIC="bbox/AP50", TEST__LOSS=True, TEST__EVAL_PERIOD=1,
        SOLVER__EARLY_STOP=2, SOLVER__MAX_ITER=9, SOLVER__BASE_LR=1e-9,
    )  # fmt: skip
    code, out, err = finish(start(config, "--engine", "lightning", "--num-gpus", 2))
    assert code == 0, err
    told = "SOLVER.EARLY_STOP 2: training ended after iteration 3 of 9"
    assert out.count(told) == 1
    run = tmp_path / "run"
    assert load(run / "model_best.pth")["best"]["iteration"] == 1
    assert load(run / "model_0000002.pth")["iteration"] == 2
