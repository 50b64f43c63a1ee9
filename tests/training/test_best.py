"""The best evaluation of a training, and its early end: what is compared, kept and resumed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.full_disk import full, full_disk
from helpers.runs import (
    load,
)

from onenet.errors import ConfigError
from onenet.training.best import Best, Figure


def best_of(folder: Path, metric: str = "bbox/AP", patience: int = 0, done: int = 0) -> Best:
    """As a training that has done so many iterations builds it."""
    test = SimpleNamespace(BEST_METRIC=metric, EVAL_PERIOD=2)
    solver = SimpleNamespace(EARLY_STOP=patience, MAX_ITER=100)
    sets = SimpleNamespace(TEST=["a"])
    cfg = SimpleNamespace(TEST=test, SOLVER=solver, OUTPUT_DIR=str(folder), DATASETS=sets)
    best = Best(cfg, "run-1")
    best.choose({"bbox/AP": False, "bbox/AP50": False, "crowdhuman/mMR": True})
    best.trainer = SimpleNamespace(cfg=cfg, iteration=done)
    return best


def evaluate(best: Best, values: list[float], start: int = 2) -> None:
    """An evaluation every second iteration; the weights are the number of iterations."""
    for iteration, value in enumerate(values):
        at = start + 2 * iteration
        best.evaluated(at, {best.metric: value}, lambda at=at: {"model": {"a": torch.tensor(at)}})


def kept(folder: Path) -> int:
    return int(load(folder / "model_best.pth")["model"]["a"])


@pytest.mark.parametrize(
    ("metric", "values", "where"),
    [
        ("bbox/AP", [1.0, 3.0, 2.0, 3.0], 4),  # the first of two alike
        ("crowdhuman/mMR", [90.0, 80.0, 85.0], 4),
        ("bbox/AP", [math.nan, 0.0, math.nan], 4),
        ("bbox/AP", [-1.0, math.inf], 2),
    ],
)
def test_the_best_evaluation_is_kept(tmp_path, metric, values, where):
    best = best_of(tmp_path, metric)
    best.before_train()
    evaluate(best, values)
    assert kept(tmp_path) == where
    value = values[where // 2 - 1]
    assert load(tmp_path / "model_best.pth")["best"] == {
        "metric": metric,
        "value": value,
        "iteration": where,
    }
    record = json.loads((tmp_path / "model_best.json").read_text())
    assert record == {"metric": metric, "value": value, "iteration": where, "run": "run-1"}


def test_the_first_process_tells_the_others_what_is_better(tmp_path, monkeypatch):
    best = best_of(tmp_path, "crowdhuman/mMR")
    other = Best(best.cfg)
    other.trainer = best.trainer
    monkeypatch.setattr("onenet.training.best.rank", lambda: 1)
    monkeypatch.setattr("onenet.training.best.gather", lambda _: [(best._lower, None)])
    other.before_train()
    assert other._is_better(Figure(1.0, 4), Figure(2.0, 2))


def test_nan_is_neither_the_best_nor_without_gain(tmp_path, caplog):
    best = best_of(tmp_path, patience=1)
    best.before_train()
    with caplog.at_level("INFO"):
        evaluate(best, [math.nan, math.nan])
    assert not best.ended and not (tmp_path / "model_best.pth").exists()
    assert "bbox/AP is nan at iteration 4: it counts neither as the best" in caplog.text


def test_training_ends_after_so_many_evaluations_in_a_row_without_gain(tmp_path, caplog):
    best = best_of(tmp_path, patience=2)
    best.before_train()
    with caplog.at_level("INFO"):
        evaluate(best, [5.0, 4.0, 6.0, 6.0])
        assert not best.ended
        evaluate(best, [1.0], start=10)
        assert best.ended
        best.report()
    folder = tmp_path / "model_best.pth"
    assert caplog.messages == [
        f"best so far: bbox/AP 5 at iteration 2, kept in {folder}",
        f"bbox/AP 4 at iteration 4; best so far: bbox/AP 5 at iteration 2, kept in {folder}; 1 of "
        "2 evaluations in a row without gain",
        f"best so far: bbox/AP 6 at iteration 6, kept in {folder}",
        f"bbox/AP 6 at iteration 8; best so far: bbox/AP 6 at iteration 6, kept in {folder}; 1 of "
        "2 evaluations in a row without gain",
        f"bbox/AP 1 at iteration 10; best so far: bbox/AP 6 at iteration 6, kept in {folder}; 2 "
        "of 2 evaluations in a row without gain",
        "SOLVER.EARLY_STOP 2: training ended after iteration 10 of 100, as 2 evaluations in a row "
        "were without gain",
        f"Best of all evaluations: bbox/AP 6 at iteration 6, kept in {folder}",
    ]


def test_an_evaluation_that_is_repeated_counts_once(tmp_path):
    best = best_of(tmp_path, patience=2)
    best.before_train()
    evaluate(best, [5.0, 4.0])
    evaluate(best, [4.0], start=4)
    assert not best.ended


def test_an_unknown_metric_is_refused_with_the_choices(tmp_path):
    with pytest.raises(ConfigError) as error:
        best_of(tmp_path, "bbox/ap")
    assert str(error.value) == (
        "TEST.BEST_METRIC must be one of bbox/AP, bbox/AP50, crowdhuman/mMR, got 'bbox/ap'; did "
        "you mean 'bbox/AP'?"
    )
    best = best_of(tmp_path)
    with pytest.raises(ConfigError, match="DATASETS.TEST .'a'. has no objects to evaluate on"):
        best.choose({})


@full_disk
def test_the_next_better_evaluation_is_kept_where_there_was_no_room(tmp_path, caplog):
    best = best_of(tmp_path)
    best.before_train()
    evaluate(best, [1.0])
    full(tmp_path / "model_best.pth")
    evaluate(best, [3.0], start=4)
    assert "model_best.pth could not be written: No space left" in caplog.text
    assert kept(tmp_path) == 2 and best.summary() == (
        f"bbox/AP 3 at iteration 4; {tmp_path / 'model_best.pth'} holds bbox/AP 1 at iteration 2"
    )
    evaluate(best, [2.0], start=6)  # better than what is kept
    assert kept(tmp_path) == 6 and json.loads((tmp_path / "model_best.json").read_text())


def resumed(best: Best, done: int, **options: Any) -> Best:
    again = best_of(best.folder, done=done, **options)
    again.load_state_dict(best.state_dict())
    again.before_train()
    return again


def test_a_resumed_run_goes_on_counting(tmp_path):
    best = best_of(tmp_path, patience=2)
    best.before_train()
    evaluate(best, [5.0, 4.0])
    again = resumed(best, 4, patience=2)
    assert not again.pending(4) and again.pending(6)
    evaluate(again, [4.0], start=6)
    assert again.ended and again.state_dict() == {
        "metric": "bbox/AP",
        "iteration": 6,
        "best": {"value": 5.0, "iteration": 2},
        "without_gain": 2,
    }
    assert not resumed(again, 6, patience=3).ended  # which a resumed run may change


def test_what_a_resumed_run_repeats_does_not_replace_what_is_better(tmp_path):
    best = best_of(tmp_path)
    best.before_train()
    evaluate(best, [5.0])
    state = best_of(tmp_path)
    state.load_state_dict(best.state_dict())
    evaluate(best, [9.0], start=4)  # lost with the part after the checkpoint
    again = resumed(state, 2)
    evaluate(again, [6.0], start=4)
    assert kept(tmp_path) == 4 and again._best == Figure(6.0, 4)
    assert load(tmp_path / "model_best.pth")["best"]["value"] == 9.0


def test_the_last_evaluation_of_a_run_that_is_prolonged_counts(tmp_path):
    """Its checkpoint was saved before it, and it was not due otherwise."""
    best = best_of(tmp_path)
    best.before_train()
    before = best_of(tmp_path)
    before.load_state_dict({"metric": "bbox/AP", "iteration": 2, "best": None, "without_gain": 1})
    evaluate(best, [7.0], start=5)
    again = resumed(before, 5)
    assert again._best == Figure(7.0, 5)
    evaluate(again, [6.0], start=6)
    assert kept(tmp_path) == 5


def test_another_metric_starts_the_search_again(tmp_path, caplog):
    best = best_of(tmp_path)
    best.before_train()
    evaluate(best, [5.0])
    with caplog.at_level("INFO"):
        again = resumed(best, 2, metric="bbox/AP50")
    assert caplog.messages == ["The best evaluation is sought again, by bbox/AP50"]
    evaluate(again, [1.0], start=4)
    assert kept(tmp_path) == 4


@pytest.mark.parametrize("content", [b"", b"[]", b'{"metric": 1}'])
def test_a_damaged_record_is_told(tmp_path, caplog, content):
    best = best_of(tmp_path)
    best.before_train()
    evaluate(best, [5.0])
    (tmp_path / "model_best.json").write_bytes(content)
    evaluate(resumed(best, 2), [1.0], start=4)
    assert "model_best.json does not say what model_best.pth holds" in caplog.text
    assert kept(tmp_path) == 4
