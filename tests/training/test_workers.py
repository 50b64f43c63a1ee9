"""Data workers that are killed or cannot pass images on: a line, and what was done is saved."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
from typing import Any

import pytest
from helpers.runs import assert_same, load, train, write_config
from helpers.small_shm import ADVICE, QUICK, check_outcomes, needs_mounts
from torch.utils.data import DataLoader, Dataset

from onenet.errors import DataWorkerError
from onenet.lightning.trainer import Trainer
from onenet.training.workers import Watched, init_worker


@pytest.mark.slow
@needs_mounts
def test_a_full_shared_memory_ends_in_a_line_and_the_run_goes_on(shapes, tmp_path):
    config = write_config(tmp_path / "stopped", shapes, **QUICK)
    done = check_outcomes("lightning", config)
    whole = write_config(tmp_path / "whole", shapes, **{**QUICK, "SOLVER__CHECKPOINT_PERIOD": done})
    train(whole, "DATASETS.TEST", "()")
    for file in (f"model_{done - 1:07d}.pth", "model_final.pth"):
        assert_same(*(load(path.parent / "run" / file)["model"] for path in (config, whole)))


def kill_workers() -> None:
    for process in multiprocessing.active_children():
        os.kill(process.pid, signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


@pytest.mark.parametrize("where", ["step", "evaluation"])
def test_a_killed_worker_ends_in_a_line_and_what_is_done_is_saved(
    shapes, tmp_path, monkeypatch, capsys, where
):
    step = Trainer.step

    def killing(self: Trainer, batch: Any) -> Any:
        if where == "step" and self.iteration == 2:
            kill_workers()
        return step(self, batch)

    def dying(*_: Any) -> None:
        data = DataLoader(range(2), num_workers=1, worker_init_fn=lambda _: os._exit(9))
        list(Watched(data))

    monkeypatch.setattr(Trainer, "step", killing)
    if where == "evaluation":
        monkeypatch.setattr("onenet.lightning.hooks.evaluate_all", dying)
    config = write_config(tmp_path, shapes, **QUICK, TEST__EVAL_PERIOD=3)
    with pytest.raises(SystemExit) as stop:
        train(config)
    (line,) = capsys.readouterr().err.splitlines()
    how = "by SIGKILL, as happens when memory runs out" if where == "step" else "with status 9"
    assert stop.value.code == 1 and how in line and ADVICE.search(line)
    last = tmp_path / "run" / "model_0000002.pth"
    assert line.endswith(f". Training stopped after iteration 3; --resume goes on from {last}")
    assert load(last)["iteration"] == 2


class Numbers(Dataset):
    """Its items, or what they raise."""

    def __init__(self, *items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        item = self.items[index]
        if isinstance(item, Exception):
            raise item
        return item


def watched(*items: Any) -> Watched:
    return Watched(
        DataLoader(Numbers(*items), num_workers=1, collate_fn=list, worker_init_fn=init_worker)
    )


def test_data_comes_as_without_watching():
    assert list(watched(1, 2, 3)) == [[1], [2], [3]] and len(watched(1, 2)) == 2
    alone = DataLoader(Numbers(1, 2), collate_fn=list)
    assert list(Watched(alone)) == list(alone)


def test_what_cannot_be_passed_on_ends_the_wait(capfd):
    with pytest.raises(DataWorkerError, match=r"a data worker has ended with status 1 \("):
        list(watched(lambda: None))  # cannot be pickled
    assert "Can't pickle" in capfd.readouterr().err


def test_a_worker_that_was_killed_with_a_lock_is_not_waited_for():
    batches = iter(watched(*range(100)))
    assert next(batches) == [0]
    inner = batches.gi_frame.f_locals["batches"]
    if (pid := os.fork()) == 0:
        inner._workers_done_event._cond.acquire()
        os._exit(0)
    os.waitpid(pid, 0)
    kill_workers()
    with pytest.raises(DataWorkerError, match="ended by SIGKILL"):
        list(batches)
    del batches, inner
    gc.collect()


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (MemoryError("no room"), DataWorkerError, "a data worker is out of memory"),
        (FileNotFoundError("a.png"), FileNotFoundError, "a.png"),
        (RuntimeError("a bug"), RuntimeError, "a bug"),
    ],
)
def test_an_error_in_a_worker(error, kind, says):
    with pytest.raises(kind, match=says):
        list(watched(1, error))


def test_workers_that_cannot_be_started(monkeypatch):
    def fail(*_: Any) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("multiprocessing.process.BaseProcess.start", fail)
    with pytest.raises(
        DataWorkerError,
        match=r"^data workers cannot be started: Resource temporarily unavailable \(DATAL",
    ):
        list(watched(1))
