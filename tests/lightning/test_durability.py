"""Trainings that are stopped, or run out of disk: nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers.forks import Forked, context
from helpers.full_disk import FULL, full, full_disk
from helpers.project import load_script
from helpers.runs import (
    assert_same,
    end,
    finish,
    metrics,
    start,
    train,
    training_of,
    unchanged_process,
    write_config,
)

from onenet.checkpoints.series import read_last_checkpoint
from onenet.lightning.monitor import Monitor
from onenet.lightning.trainer import Trainer
from onenet.training.signals import SIGNALS, Stopped, StopRequests, hand_on, stop_at_once


def test_checkpoints_to_keep_are_none_or_more(shapes, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        train(write_config(tmp_path, shapes), "SOLVER.CHECKPOINT_KEEP", -1)
    assert stop.value.code == 2
    assert "SOLVER.CHECKPOINT_KEEP is -1; expected" in capsys.readouterr().err


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted_in_a_loop_and_raised_elsewhere(number):
    before = signal.getsignal(number)
    with pytest.raises(Stopped) as stopped, stop_at_once():
        with StopRequests() as requests:
            assert requests.agreed() == 0
            send(number)
            assert requests.agreed() == number
        send(number)
    assert stopped.value.number == number and signal.getsignal(number) is before


def test_a_second_interrupt_stops_at_once_and_a_second_sigterm_waits():
    with pytest.raises(Stopped, match="^Ctrl-C: interrupted"), StopRequests() as requests:
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        assert requests.agreed() == signal.SIGTERM
        send(signal.SIGINT)


# As of a job in the background, and as nohup does.
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_that_is_ignored_stays_ignored(number):
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with stop_at_once(), StopRequests() as requests:
            send(number)
            assert requests.agreed() == 0
    finally:
        signal.signal(number, before)


HUNG_UP = """
import sys, time
from onenet.training.signals import StopRequests, end_stopped, stopped_after

with StopRequests() as requests:
    print("ready", flush=True)
    while not (number := requests.agreed()):
        time.sleep(0.01)
    print("progress", file=sys.stderr, flush=True)
print("saved", file=open(sys.argv[1], "w"))
end_stopped(stopped_after(3, number, None), print)
"""


def test_a_terminal_that_closes_does_not_keep_a_run_from_saving(tmp_path):
    ours, theirs = os.openpty()
    command = [sys.executable, "-c", HUNG_UP, tmp_path / "saved"]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    assert os.read(ours, 100).startswith(b"ready")
    os.close(ours)
    process.send_signal(signal.SIGHUP)
    assert process.wait(120) == 129
    assert (tmp_path / "saved").read_text() == "saved\n"


@pytest.mark.parametrize("number", SIGNALS[1:])
def test_a_process_that_waits_for_others_hands_signals_on(number):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with pytest.MonkeyPatch.context() as patch, hand_on(), child:
        patch.setattr("multiprocessing.active_children", lambda: [child])
        send(signal.SIGINT)  # reaches children from the terminal
        assert child.poll() is None
        send(number)
        assert child.wait(60) == -number


QUICK = {"SOLVER__MAX_ITER": 4, "SOLVER__CHECKPOINT_PERIOD": 2, "DATASETS__TEST": []}


@pytest.fixture(scope="module")
def uninterrupted(shapes, tmp_path_factory) -> Path:
    """The folder of a run of 4 iterations, saved after 2 and 4."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    train(write_config(folder, shapes, **QUICK))
    return folder / "run"


@contextmanager
def at_iteration(monkeypatch: pytest.MonkeyPatch, number: int, act: Any) -> Iterator[None]:
    """Have ``act`` called within the step of an iteration, counted from 1."""
    step = Trainer.step

    def acting(self, batch):
        if self.iteration == number - 1:
            act()
        return step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", acting)
        yield


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGUSR1, 128 + signal.SIGUSR1)],
)
def test_a_stopped_run_is_saved_and_ends_like_an_uninterrupted_one(
    shapes, tmp_path, monkeypatch, capsys, uninterrupted, number, status
):
    config, run = write_config(tmp_path, shapes, **QUICK), tmp_path / "run"
    with pytest.raises(SystemExit) as stop:
        with at_iteration(monkeypatch, 3, lambda: send(number)):
            train(config)
    assert stop.value.code == status
    last = run / "model_0000002.pth"  # of the third iteration, between two periods
    told = f"{number.name}: stopped after iteration 3; --resume goes on from {last}"
    assert capsys.readouterr().err.splitlines()[-1] == told
    assert told in (run / "log.txt").read_text()
    assert not (run / "model_final.pth").exists()
    train(config, "--resume")
    for file in ("model_0000003.pth", "model_final.pth"):
        assert_same(training_of(run / file), training_of(uninterrupted / file))


def test_a_signal_during_evaluation_saves_what_is_not_saved_yet(
    shapes, tmp_path, monkeypatch, capsys
):
    config = write_config(tmp_path, shapes, **{**QUICK, "TEST__EVAL_PERIOD": 3})
    monkeypatch.setattr("onenet.lightning.hooks.evaluate_all", lambda *_: send(signal.SIGTERM))
    with pytest.raises(SystemExit) as stop:
        train(config)
    assert stop.value.code == 143
    assert "stopped after iteration 3; --resume goes on from" in capsys.readouterr().err
    assert (tmp_path / "run" / "last_checkpoint").read_text() == "model_0000002.pth"


@pytest.mark.slow
def test_ctrl_c_reaches_every_process_and_the_loading_ones_leave_it_to_the_first(shapes, tmp_path):
    config = write_config(
        tmp_path, shapes, **{**QUICK, "SOLVER__MAX_ITER": 100000, "SOLVER__CHECKPOINT_PERIOD": 3},
        DATALOADER__NUM_WORKERS=1,
    )  # fmt: skip
    process = start(config, "--num-gpus", "2", "SOLVER.IMS_PER_BATCH", 2, PYTHONUNBUFFERED="1")
    try:
        while not (tmp_path / "run" / "last_checkpoint").exists():
            assert process.poll() is None
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        code, _, err = finish(process)
    finally:
        end(process)
    assert code == 130, err
    (line,) = (line for line in err.splitlines() if line.startswith("Ctrl-C: stopped after"))
    path, state = read_last_checkpoint(tmp_path / "run")
    assert line.endswith(f"--resume goes on from {path}")
    assert f"after iteration {state['iteration'] + 1};" in line and "Traceback" not in err


# Full disks and read-only folders in training


@full_disk
def test_training_goes_on_where_a_checkpoint_cannot_be_written(
    shapes, tmp_path, monkeypatch, capsys, uninterrupted
):
    config, run = write_config(tmp_path, shapes, **QUICK), tmp_path / "run"
    with at_iteration(monkeypatch, 2, lambda: full(run / "model_0000001.pth")):
        with at_iteration(monkeypatch, 4, lambda: full(run / "model_final.pth")):
            with pytest.raises(SystemExit) as stop:
                train(config)
    assert stop.value.code == 1
    out, err = capsys.readouterr()
    assert "model_0000001.pth could not be written: No space left on device. It takes " in out
    (error,) = err.splitlines()
    assert "model_final.pth could not be written: No space left on device" in error
    assert error.endswith(f"; --resume goes on from {run / 'model_0000003.pth'}")
    assert [path.name for path in run.glob("*.pth")] == ["model_0000003.pth"]
    last = "model_0000003.pth"
    assert_same(training_of(run / last), training_of(uninterrupted / last))


SHORT = {"SOLVER__MAX_ITER": 2, "TEST__EVAL_PERIOD": 1}


@full_disk
def test_results_that_cannot_be_written(shapes, tmp_path, monkeypatch, capsys):
    config, run = write_config(tmp_path, shapes, **SHORT), tmp_path / "run"
    results = run / "inference" / "coco_instances_results.json"
    results.parent.mkdir(parents=True)
    with at_iteration(monkeypatch, 1, lambda: full(results)):
        train(config)
    out = capsys.readouterr().out
    assert "coco_instances_results.json could not be written: No space" in out
    assert out.count("duplicates: ") == 2 and json.loads(results.read_text())  # of the second time


@full_disk
def test_curves_that_cannot_be_written_are_told_once(tmp_path, caplog):
    options = {"start_iteration": 0, "max_iter": 9, "images_per_batch": 1}
    (tmp_path / "metrics.json").symlink_to(FULL)
    with unchanged_process():
        monitor = Monitor(tmp_path, **options)
        with caplog.at_level("ERROR", "onenet"):
            for iteration in (1, 2):
                monitor.log(iteration, {"loss_ce": 1.0}, 0.1, 0.1)
            monitor.close()
    (line,) = (m for m in caplog.messages if "metrics.json" in m)
    assert line == "metrics.json cannot be written: No space left on device. Training goes on"


def test_half_a_line_of_metrics_is_dropped(tmp_path):
    (tmp_path / "metrics.json").write_text('{"iteration": 1}\n{"iterat')
    monitor = Monitor(tmp_path, start_iteration=1, max_iter=9, images_per_batch=1)
    monitor.write(2, {"loss_ce": 1.0})
    monitor.close()
    assert [line["iteration"] for line in metrics(tmp_path)] == [1, 2]


@pytest.mark.slow
def test_a_small_disk_and_a_read_only_folder(shapes, tmp_path):
    """Real ones, which a user namespace allows without being root."""
    namespace = ["unshare", "--user", "--map-root-user", "--mount"]
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f'mount -t tmpfs -o size=210m tmpfs "{disk}"'
    try:
        possible = subprocess.run([*namespace, "sh", "-c", mount], capture_output=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("needs unshare, of Linux")
    if possible.returncode:
        pytest.skip(f"needs user namespaces: {possible.stderr.decode().strip()}")
    config = write_config(tmp_path, shapes, SOLVER__CHECKPOINT_PERIOD=1, DATASETS__TEST=[])
    program = ["-m", "helpers.small_disk", str(config), str(disk)]
    code, out, err = finish(Forked(program, dict(os.environ)))
    assert code == 0, err
    full, resumed, read_only, never = json.loads(out.splitlines()[-1])
    # A checkpoint takes 90 MB: two fit, and the weights alone do not.
    assert full["status"] == 1 and full["files"] == ["model_0000000.pth", "model_0000001.pth"]
    assert full["err"].endswith(f"--resume goes on from {disk}/full/model_0000001.pth\n")
    assert full["out"].count("No space left on device. It takes 9") == 2
    assert "more than are free; make room. Older checkpoints are unchanged" in full["out"]
    assert resumed["status"] == 0 and resumed["files"] == ["model_0000003.pth", "model_final.pth"]
    assert read_only["status"] == 1 and read_only["files"] == ["model_0000000.pth"]
    assert read_only["out"].count("could not be written: Read-only file system") == 1
    assert read_only["err"].endswith(f"--resume goes on from {disk}/ro/model_0000000.pth\n")
    assert never["status"] == 2 and never["files"] == ["model_0000000.pth"]
    assert f"OUTPUT_DIR {disk}/ro cannot be written" in never["err"]


@pytest.mark.slow
@pytest.mark.usefixtures("tools")
def test_trainings_killed_at_random_moments(tmp_path, capsys):
    context()  # what its processes are forked from
    words = f"--runs 1 --output {tmp_path} SOLVER.MAX_ITER 4 SOLVER.CHECKPOINT_PERIOD 2".split()
    with unchanged_process(), pytest.raises(SystemExit) as stop:
        load_script("tools/dev/check_resume.py").main(words)
    out, err = capsys.readouterr()
    assert stop.value.code == 0, out + err
    one, all_runs = out.splitlines()
    assert one.startswith("run001: killed ") and one.endswith(": equal")
    assert all_runs.startswith("1 of 1 trainings ended bit-equal to the uninterrupted one; killed")
    assert not (tmp_path / "run001").exists() and (tmp_path / "uninterrupted").exists()
