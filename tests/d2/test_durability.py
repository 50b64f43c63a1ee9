"""Detectron2's engine loses nothing: signals, full disks, damaged checkpoints, what is kept."""

from __future__ import annotations

import pytest

pytest.importorskip("detectron2")

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from detectron2.utils.events import EventWriter
from helpers.detectron2_runs import train_d2
from helpers.full_disk import flip_a_bit, full, full_disk
from helpers.runs import load, metrics, write_config

from onenet.d2 import Trainer
from onenet.d2.config import load_cfg
from onenet.d2.datasets import register_datasets
from onenet.d2.loader import build_test_loader, build_train_loader
from onenet.d2.saving import GoingOn
from onenet.training.workers import Watched

QUICK = {"SOLVER__MAX_ITER": 4, "SOLVER__CHECKPOINT_PERIOD": 2, "DATASETS__TEST": []}


@contextmanager
def at_iteration(monkeypatch: pytest.MonkeyPatch, number: int, act: Any) -> Iterator[None]:
    """Have ``act`` called within the step of an iteration, counted from 1."""
    step = Trainer.run_step

    def acting(self):
        if self.iter == number - 1:
            act()
        step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run_step", acting)
        yield


def names(run: Path) -> set[str]:
    return {path.name for path in run.glob("*.pth")}


@pytest.mark.parametrize(
    ("number", "name", "code"),
    [
        (signal.SIGINT, "Ctrl-C", 130),
        (signal.SIGTERM, "SIGTERM", 143),
        (signal.SIGHUP, "SIGHUP", 129),
        (signal.SIGUSR1, "SIGUSR1", 128 + signal.SIGUSR1),
    ],
)
def test_a_stopped_run_is_saved_and_goes_on(
    shapes, tmp_path, monkeypatch, capsys, number, name, code
):
    config, run = write_config(tmp_path, shapes, **QUICK), tmp_path / "run"
    with pytest.raises(SystemExit) as stop:
        with at_iteration(monkeypatch, 3, lambda: os.kill(os.getpid(), number)):
            train_d2(config)
    assert stop.value.code == code
    told = f"{name}: stopped after iteration 3; --resume goes on from {run / 'model_0000002.pth'}"
    assert capsys.readouterr().err.splitlines()[-1] == told
    assert told in (run / "log.txt").read_text()
    assert load(run / "model_0000002.pth")["trainer"]["iteration"] == 2
    train_d2(config, "--resume")
    assert "3 iterations are done" in (run / "log.txt").read_text()
    assert (run / "last_checkpoint").read_text() == "model_final.pth"


def test_a_signal_during_evaluation_saves_what_is_not_saved_yet(
    shapes, tmp_path, monkeypatch, capsys
):
    config = write_config(tmp_path, shapes, **{**QUICK, "TEST__EVAL_PERIOD": 1})
    monkeypatch.setattr(Trainer, "test", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as stop:
        train_d2(config)
    assert stop.value.code == 143
    assert "SIGTERM: stopped after iteration 1; --resume" in capsys.readouterr().err
    assert names(tmp_path / "run") == {"model_0000000.pth"}


def test_a_damaged_checkpoint_falls_back_to_the_one_before(shapes, tmp_path):
    config, run = write_config(tmp_path, shapes, **QUICK), tmp_path / "run"
    train_d2(config)
    for name in ("model_final.pth", "model_0000003.pth"):
        flip_a_bit(run / name)
    train_d2(config, "--resume")
    log = (run / "log.txt").read_text()
    for name in ("model_final.pth", "model_0000003.pth"):
        assert f"{name} cannot be read as a checkpoint" in log
    assert log.count(f"Going on from {run / 'model_0000001.pth'}") == 2
    assert "2 iterations are done" in log
    assert load(run / "model_final.pth")["iteration"] == 3


@full_disk
def test_training_goes_on_where_a_checkpoint_cannot_be_written(
    shapes, tmp_path, monkeypatch, capsys
):
    config, run = write_config(tmp_path, shapes, **QUICK), tmp_path / "run"
    words = ("SOLVER.CHECKPOINT_PERIOD", 1, "SOLVER.CHECKPOINT_KEEP", 1)
    with at_iteration(monkeypatch, 2, lambda: full(run / "model_0000001.pth")):
        with at_iteration(monkeypatch, 4, lambda: full(run / "model_final.pth")):
            with pytest.raises(SystemExit) as stop:
                train_d2(config, *words)
    assert stop.value.code == 1
    log = (run / "log.txt").read_text()
    assert "model_0000001.pth could not be written: No space left on device. It takes " in log
    assert names(run) == {"model_0000003.pth"}
    error = capsys.readouterr().err.splitlines()[-1]
    assert "model_final.pth could not be written: No space left on device" in error
    assert error.endswith(f"; --resume goes on from {run / 'model_0000003.pth'}")


def test_results_that_cannot_be_written(shapes, tmp_path, monkeypatch):
    """Training goes on, as in the embedded engine."""
    config = write_config(tmp_path, shapes, SOLVER__MAX_ITER=2, TEST__EVAL_PERIOD=1)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "inference").symlink_to("/dev/full")
    with pytest.raises(SystemExit) as stop:
        train_d2(config)
    assert stop.value.code == 1  # of the evaluation at the end
    assert "the evaluation's files could not be written" in (tmp_path / "run/log.txt").read_text()
    assert "model_final.pth" in names(tmp_path / "run")
    assert metrics(tmp_path / "run")[-1]["iteration"] == 1


def test_a_writer_without_room_is_told_once(caplog):
    class Full(EventWriter):
        def write(self) -> None:
            raise OSError(28, "No space left on device")

    writer = GoingOn(Full())
    with caplog.at_level("ERROR"):
        for _ in range(3):
            writer.write()
    assert caplog.messages == ["Full cannot write: No space left on device. Training goes on"]


def test_the_workers_leave_signals_to_the_first_process(shapes, tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr("onenet.d2.loader.init_worker", lambda: done.append(1))
    cfg = load_cfg(write_config(tmp_path, shapes))
    register_datasets((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))
    loaders = [build_train_loader(cfg), build_test_loader(cfg, cfg.DATASETS.TEST[0])]
    for count, loader in enumerate(loaders, start=1):
        inner = loader if isinstance(loader, Watched) else loader.dataset
        inner.loader.worker_init_fn(0)
        assert len(done) == count
