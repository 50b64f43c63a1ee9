"""``SOLVER.SKIP_NONFINITE``: iterations that go wrong leave everything as it was."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from typing import Any
from zlib import crc32

import pytest
import torch
from helpers.nonfinite import CPU, Later, nan_gradient, nan_loss, values
from helpers.runs import load, metrics, train, write_config

from onenet.assignment.criterion import Criterion
from onenet.errors import NonFiniteError
from onenet.training.history import History
from onenet.training.hooks import Average

CHANGES = {
    "SOLVER__OPTIMIZER": "ADAMW",
    "MODEL_EMA__ENABLED": True,
    "SOLVER__SKIP_NONFINITE": 2,
    "DATASETS__TEST": [],
}


def break_at(monkeypatch, iterations: set[int], spoil: Any = nan_loss) -> None:
    """Have ``spoil`` change the losses of some iterations."""
    forward, count = Criterion.forward, Counter()

    def spoilt(self, *args):
        count["calls"] += 1
        losses = forward(self, *args)
        return spoil(losses) if count["calls"] in iterations else losses

    monkeypatch.setattr(Criterion, "forward", spoilt)


def checksums(value: Any) -> Any:
    """A state, with a checksum in the place of every tensor."""
    if isinstance(value, dict):
        return {key: checksums(below) for key, below in value.items()}
    return crc32(value.reshape(-1).numpy()) if isinstance(value, torch.Tensor) else value


def states(monkeypatch) -> list[dict[str, Any]]:
    """What every step of a training leaves behind, in the order of the steps."""
    found, average = [], Average.after_step

    def noted(self):
        average(self)
        trainer = self.trainer
        parts = {
            "model": trainer.model.state_dict(),
            "average": trainer.ema.model.state_dict(),
            "optimizer": trainer.optimizer.state_dict()["state"],
            "schedule": trainer.scheduler.state_dict()["last_epoch"],
        }
        found.append(checksums(parts))

    monkeypatch.setattr(Average, "after_step", noted)
    return found


@pytest.mark.parametrize(("history", "spoil"), [(History, nan_loss), (Later, nan_gradient)])
def test_as_many_in_a_row_are_skipped(shapes, tmp_path, monkeypatch, history, spoil):
    monkeypatch.setattr("onenet.lightning.trainer.History", history)
    break_at(monkeypatch, {2, 3, 5, 6}, spoil)
    found = states(monkeypatch)
    train(write_config(tmp_path, shapes, **CHANGES))
    assert len(found) == 6
    assert [state.pop("schedule") for state in found] == [1, 2, 3, 4, 5, 6]
    same = [before == after for before, after in pairwise(found)]
    assert same == [True, True, False, True, True]
    run = tmp_path / "run"
    (line,) = metrics(run)  # means of the iterations that went well
    assert math.isfinite(line["total_loss"])
    log = (run / "log.txt").read_text()
    assert "iteration 2 is skipped, number 1 since the start: " in log and ".jpg" in log
    assert "SOLVER.SKIP_NONFINITE: 4 of 6 iterations since this start were skipped" in log
    assert not list(run.glob("nonfinite*"))
    assert all(v.isfinite().all() for v in load(run / "model_final.pth")["model"].values())


def test_one_more_in_a_row_stops(shapes, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("onenet.lightning.trainer.History", Later)
    break_at(monkeypatch, {1, 3, 4, 5})
    found = states(monkeypatch)
    with pytest.raises(SystemExit) as stop:
        train(write_config(tmp_path, shapes, **CHANGES))
    assert stop.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("error: iteration 5: loss_giou = nan, gradient norm = nan, on ")
    assert "number 3 since the start" in (tmp_path / "run" / "log.txt").read_text()
    dump = load(tmp_path / "run" / "nonfinite_0000005.pt")
    assert checksums(dump["model"]) == found[1]["model"] == found[-1]["model"]


def test_a_cost_is_skipped_like_a_loss(shapes, tmp_path, monkeypatch):
    call, count = Criterion.forward, Counter()

    def nan_logits(self, predictions, targets):
        count["calls"] += 1
        if count["calls"] == 1:
            predictions.logits.detach()[0, 0] = math.nan
        return call(self, predictions, targets)

    monkeypatch.setattr(Criterion, "forward", nan_logits)
    config = write_config(
        tmp_path, shapes, **CHANGES, MODEL__OneNet__MATCHER="hungarian", SOLVER__MAX_ITER=1
    )
    train(config)
    assert (tmp_path / "run" / "metrics.json").read_text() == ""  # no mean of nothing
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "the assignment cost is NaN or infinite, for image 0 of the batch" in log
    assert "iteration 1 is skipped, number 1 since the start: cost = nan, loss_ce = nan" in log


def test_few_are_told_with_a_line_each(caplog):
    history = History(CPU, 0, tolerated=100)
    for _ in range(45):
        history.add(values(math.nan, 1.0), ["a.jpg"])
    assert history.read() == [] and history.skipped == 45
    numbers = [int(r.getMessage().split("number ")[1].split()[0]) for r in caplog.records]
    assert numbers == [*range(1, 11), 20, 30, 40]


def test_what_cannot_be_dumped_stops_all_the_same(caplog):
    def full(iteration: int, what: str) -> None:
        raise OSError("No space left on device")

    history = History(CPU, 0, dump=full)
    history.add(values(math.nan, 1.0), ["a.jpg"])
    with pytest.raises(NonFiniteError, match="iteration 1: loss_ce = nan, on a.jpg") as error:
        history.read()
    assert "--replay" not in str(error.value)
    assert "iteration 1 could not be dumped: No space left" in caplog.text
