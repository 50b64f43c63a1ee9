"""tools/ablate.py: runs are done once, may fail or be interrupted, and share a machine."""

from __future__ import annotations

import csv
import json
import os
import signal
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from helpers.ablate_example import Played, command, script, write_spec
from helpers.runs import unchanged_process

from _shared.ablations import runs  # isort: skip
from _shared.training_runs import CONSOLE, Children, RunError  # isort: skip


def play(monkeypatch, process=None):
    """Replaces runs by :class:`Played`, and returns it."""
    played = Played(process)
    monkeypatch.setattr(Children, "call", lambda _, *words, **more: played(*words, **more))
    return played


def lines(tmp_path):
    return list(csv.DictReader((tmp_path / "out" / "study.csv").open(newline="")))


@pytest.mark.slow
def test_a_grid_is_trained_evaluated_and_tabled_once(shapes, tmp_path, monkeypatch, capsys):
    played = play(monkeypatch, unchanged_process)
    monkeypatch.setattr(script, "REPEATS", 2)
    words = command(shapes, tmp_path, speed=True, positives=True)
    script.main(words)
    study = tmp_path / "out" / "study"
    expected = [study / row / "seed1" / e for row in ("off", "on") for e in ("", "eval_nms")]
    assert played.folders == expected
    assert [(line["class cost"], line["state"]) for line in lines(tmp_path)] == [
        ("off", "done"),
        ("on", "done"),
    ]
    for row in json.loads((tmp_path / "out" / "study.json").read_text())["rows"]:
        assert row["images/s"] > 0 and row["mean"]["positives an object"] == 1
        stored = study / row["labels"]["class cost"] / "seed1" / "result.json"
        found = json.loads(stored.read_text())["metrics"]["bbox/AP"]
        assert row["seeds"]["1"]["AP"] == row["mean"]["AP"] == found
    told = capsys.readouterr().out
    assert "0 of 2 ended; running: off, seed 1" in told and "| off " in told

    write_spec(tmp_path)
    # Killed after a training, before its result was stored: only that training runs again.
    (study / "on" / "seed1" / "result.json").unlink()
    script.main(words)
    assert played.folders[4:] == [study / "on" / "seed1"]
    script.main(words)  # nothing is left
    assert len(played.folders) == 5


def test_every_run_imports_the_users_files(shapes, tmp_path, monkeypatch):
    given = []
    played = Played()

    def call(_, words, **more):
        given.append(words[words.index("--import") + 1])
        return played(words, **more)

    monkeypatch.setattr(Children, "call", call)
    rule = tmp_path / "ablated_rule.py"
    rule.write_text("")
    monkeypatch.setattr(sys, "path", sys.path[:])
    script.main(command(shapes, tmp_path, "--import", str(rule)))
    assert given == [str(rule)] * 4  # two trainings, each evaluated once more


def test_a_row_that_fails_does_not_end_the_others(shapes, tmp_path, monkeypatch, capsys):
    played = play(monkeypatch)
    played.failing = "/off/"
    words = command(shapes, tmp_path, "--seeds", "4")
    with pytest.raises(SystemExit) as stop:
        script.main(words)
    assert stop.value.code == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith("failed: off, seed 4. The same command tries them again")
    assert [(line["state"], line["AP"] != "") for line in lines(tmp_path)] == [
        ("failed", False),
        ("done", True),
    ]
    played.failing = None
    script.main(words)
    assert [line["state"] for line in lines(tmp_path)] == ["done", "done"]


def test_after_an_interruption_the_tables_hold_what_is_done(shapes, tmp_path, capsys, monkeypatch):
    played = Played()

    def call(_, words, *, folder, env):
        if "/on/" in str(folder):
            raise KeyboardInterrupt
        return played(words, folder=folder, env=env)

    monkeypatch.setattr(Children, "call", call)
    with pytest.raises(SystemExit) as stop:
        script.main(command(shapes, tmp_path))
    assert stop.value.code == 130 and "the same command continues" in capsys.readouterr().err
    assert [line["state"] for line in lines(tmp_path)] == ["done", ""]


def test_detectron2_trains_and_evaluates_alike(shapes, tmp_path, monkeypatch):
    pytest.importorskip("detectron2")
    from helpers.detectron2_runs import d2_process

    played = play(monkeypatch, d2_process)
    words = command(shapes, tmp_path)
    words[words.index("lightning")] = "detectron2"
    script.main(words)
    assert len(played.folders) == 4
    assert [line["state"] for line in lines(tmp_path)] == ["done", "done"]
    assert "Detectron2" in (played.folders[0] / "log.txt").read_text()
    script.main(words)
    assert len(played.folders) == 4
    with pytest.raises(SystemExit):  # runs of the other engine do not count
        script.main(command(shapes, tmp_path))


# Programs.

SAVES = """
import signal, sys, time

def save(number, frame):
    time.sleep(0.2)
    print('saved', flush=True)
    sys.exit(143)

signal.signal(signal.SIGTERM, save)
print('begins', flush=True)
time.sleep(60)
"""


def wait_for(file, text):
    for _ in range(600):
        if file.is_file() and text in file.read_text():
            return
        time.sleep(0.05)
    pytest.fail(f"{file} has no {text}")


def test_an_interrupted_program_can_save_and_is_waited_for(tmp_path):
    children, codes = Children(), []

    def call():
        codes.append(children.call([sys.executable, "-c", SAVES], folder=tmp_path / "a"))

    thread = threading.Thread(target=call)
    thread.start()
    wait_for(tmp_path / "a" / CONSOLE, "begins")
    with pytest.raises(RunError, match="a run is still working there"):
        Children().call([sys.executable, "-c", ""], folder=tmp_path / "a")
    children.end()
    thread.join()
    assert codes == [143] and (tmp_path / "a" / CONSOLE).read_text() == "begins\nsaved\n"
    with pytest.raises(KeyboardInterrupt):  # no more programs start
        children.call([sys.executable, "-c", ""], folder=tmp_path / "b")


def test_ctrl_c_reaches_a_program_that_is_waited_for(tmp_path):
    def press():
        wait_for(tmp_path / CONSOLE, "begins")
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        Children().call([sys.executable, "-c", SAVES], folder=tmp_path)
    thread.join()
    assert (tmp_path / CONSOLE).read_text() == "begins\nsaved\n"


def test_a_program_that_is_alone_has_its_exit_code_and_environment(tmp_path):
    code = "import os, sys; print(os.environ['PLACE']); sys.exit(7)"
    given = {"folder": tmp_path, "env": {"PLACE": "here"}}
    assert Children().call([sys.executable, "-c", code], **given) == 7
    assert (tmp_path / CONSOLE).read_text() == "here\n"


def test_so_many_jobs_run_at_a_time():
    """Two of three trainings meet at a barrier; the third starts when one has ended."""
    together, seen, errors = threading.Barrier(2, timeout=30), [], []
    third = threading.Event()

    def work(training, call):
        if training.name == "c":
            third.set()
        else:
            together.wait()
            seen.append(third.is_set())

    trainings = [SimpleNamespace(name=n, iterations=1, folder=None) for n in "abc"]
    finished = lambda training, error, seconds: errors.append(error)  # noqa: E731
    runs.run_all(trainings, 2, work, finished, gpus=1, cuda=False)
    assert errors == [None] * 3 and len(seen) == 2 and third.is_set()


def test_machines_are_shared(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(runs.os, "cpu_count", lambda: 8)
    assert runs.share(0, 1, gpus=1, cuda=False) == {}
    assert runs.share(1, 3, gpus=1, cuda=False) == {"OMP_NUM_THREADS": "2"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,7")
    monkeypatch.setattr(runs.torch.cuda, "device_count", lambda: 3)
    given = [runs.share(p, 4, gpus=1, cuda=True)["CUDA_VISIBLE_DEVICES"] for p in range(4)]
    assert given == ["4", "5", "7", "4"]
    assert runs.share(1, 2, gpus=2, cuda=True) == {"CUDA_VISIBLE_DEVICES": "7,4"}


def test_the_rest_takes_as_long_for_an_iteration(monkeypatch):
    """30 s for 10 iterations; 20 and 5 are left, one has run for 12 s: (75 - 12) / 2 jobs."""
    now = [100.0]
    monkeypatch.setattr(runs.time, "monotonic", lambda: now[0])
    trainings = [SimpleNamespace(name=n, iterations=i) for n, i in (("a", 10), ("b", 20), ("c", 5))]
    progress = runs.Progress(trainings, jobs=2)
    progress.start(trainings[0])
    progress.end(trainings[0], 30.0)
    progress.start(trainings[1])
    now[0] += 12
    assert progress.remaining() == pytest.approx(31.5)
