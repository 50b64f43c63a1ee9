"""OUTPUT_DIR: whose run it holds, and who works in it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.project import ROOT

from onenet.checkpoints.files import save_checkpoint
from onenet.checkpoints.series import add_checkpoint
from onenet.errors import CheckpointError, ConfigError
from onenet.training.run_folder import RunFolder


def begun(path: Path, *, iterations: int = 0, final: bool = False, **flags: bool) -> RunFolder:
    """The folder of a run that has begun, with checkpoints of so many iterations."""
    folder = RunFolder(path)
    with folder.held():
        folder.check(**{"resume": False, "overwrite": False, **flags})
        if flags.get("resume"):
            folder.read_last()
        folder.begin("SEED: 1\n")
    for iteration in range(iterations):
        content = {"model": {}, "iteration": iteration, "run": folder.run}
        add_checkpoint(path / f"model_{iteration:07d}.pth", content)
    if final:
        save_checkpoint(path / "model_final.pth", {"model": {}, "run": folder.run})
    return folder


def refused(path: Path, **flags) -> str:
    before = {p: p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}
    with pytest.raises((CheckpointError, ConfigError)) as error:
        begun(path, **flags)
    after = {p: p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}
    assert {p for p in after if before.get(p) != after[p]} <= {path / ".lock"}
    return str(error.value)


def last(path: Path) -> tuple[str, str]:
    """The id and the name of the checkpoint that a run resumes from."""
    folder = RunFolder(path)
    folder.check(resume=True, overwrite=False)
    found = folder.read_last()
    return folder.run, found and found[0].name


# Whose run it is


def test_a_run_and_its_checkpoints_have_one_id(tmp_path):
    folder = begun(tmp_path, iterations=2)
    assert json.loads((tmp_path / "run.json").read_text()) == {"id": folder.run}
    assert last(tmp_path) == (folder.run, "model_0000001.pth")
    resumed = begun(tmp_path, resume=True)
    assert resumed.run == folder.run != RunFolder(tmp_path).run


@pytest.mark.parametrize("files", [{"iterations": 2}, {"final": True}])
def test_a_folder_that_holds_a_run_is_refused_with_the_ways_out(tmp_path, files):
    folder = begun(tmp_path, **files)
    name = "model_0000001.pth" if "iterations" in files else "model_final.pth"
    assert refused(tmp_path) == (
        f"OUTPUT_DIR {tmp_path} holds run {folder.run} already (its newest file: {name}). "
        "Continue it with --resume, give another OUTPUT_DIR, or replace it with --overwrite"
    )


@pytest.mark.parametrize("name", ["model_0000001.pth", "model_final.pth"])
def test_so_is_one_with_checkpoints_of_an_earlier_version(tmp_path, name):
    save_checkpoint(tmp_path / name, {"model": {}, "iteration": 1})
    assert f"OUTPUT_DIR {tmp_path} holds a run already" in refused(tmp_path)


def test_a_run_that_saved_nothing_makes_way(tmp_path, caplog):
    first = begun(tmp_path)
    (tmp_path / "metrics.json").write_text('{"iteration": 20}\n')
    (tmp_path / "nonfinite_0000021.pt").touch()
    with caplog.at_level("INFO"):
        second = begun(tmp_path)
    assert second.run != first.run and last(tmp_path) == (second.run, None)
    assert f"in place of {first.run}, which saved no checkpoint" in caplog.text
    assert (tmp_path / "metrics.json").read_text() == ""  # not the curves of two runs
    assert (tmp_path / "nonfinite_0000021.pt").exists()


def test_what_is_not_a_runs_stays(tmp_path):
    """As in ./output, where evaluations write, and other runs below."""
    names = ("inference/coco_instances_results.json", "other/model_0000001.pth", "notes.txt")
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    begun(tmp_path)
    assert all((tmp_path / name).read_text() == "mine" for name in names)


def test_overwriting_removes_what_the_run_left_and_nothing_else(tmp_path, caplog):
    tmp_path = tmp_path / "run"
    first = begun(tmp_path, iterations=3, final=True)
    removed = [f"model_{i:07d}.pth" for i in range(3)]
    removed += ["model_final.pth", "last_checkpoint", "events.out.tfevents.1.host"]
    removed += ["model_best.pth", "model_best.json", "metrics.csv"]
    removed += ["inference/set/coco_instances_results.json", "inference/config.yaml"]
    kept = ["log.txt", "notes.txt", "inference/picture.jpg", "nonfinite_0000001.pt", "my_model.pth"]
    kept += ["model_0000001_mine.pth", "../outside.pth"]
    for name in (*removed[5:], *kept):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    (tmp_path / "metrics.json").write_text('{"iteration": 20}\n')
    (tmp_path / "last_checkpoint").write_text("../outside.pth")
    with caplog.at_level("INFO"):
        second = begun(tmp_path, overwrite=True)
    assert second.run != first.run
    assert not [name for name in removed if (tmp_path / name).exists()]
    assert all((tmp_path / name).exists() for name in kept)
    assert (tmp_path / "metrics.json").read_text() == ""
    assert "Removed files of the run that was here: model_0000000.pth, model_000" in caplog.text


def test_a_run_whose_best_weights_alone_are_saved_makes_no_way(tmp_path):
    begun(tmp_path)
    save_checkpoint(tmp_path / "model_best.pth", {"model": {}})
    assert "already (its newest file: model_best.pth). Continue it with --resume" in refused(
        tmp_path
    )
    begun(tmp_path, resume=True)  # from the first iteration


def test_overwriting_does_not_remove_the_weights_to_start_from(tmp_path):
    begun(tmp_path, iterations=1, final=True)
    folder, weights = RunFolder(tmp_path), f"{tmp_path}/../{tmp_path.name}/model_final.pth"
    with pytest.raises(ConfigError, match="--overwrite would remove MODEL.WEIGHTS .*move that"):
        folder.check(resume=False, overwrite=True, weights=weights)
    folder.check(resume=False, overwrite=True, weights="torchvision://resnet18")


# Resuming


def test_resuming_where_there_is_no_run_starts_one(tmp_path, caplog):
    with caplog.at_level("INFO"):
        folder = begun(tmp_path / "new", resume=True)
    assert "new holds no checkpoint: starting from the first iteration" in caplog.text
    assert json.loads((tmp_path / "new" / "run.json").read_text())["id"] == folder.run


def test_resuming_a_run_without_a_checkpoint_starts_it(tmp_path, caplog):
    first = begun(tmp_path)
    with caplog.at_level("INFO"):
        assert begun(tmp_path, resume=True).run == first.run
    assert f"holds run {first.run}, which has saved no checkpoint: starting it" in caplog.text


def test_resuming_where_only_the_result_is_left_is_refused(tmp_path):
    begun(tmp_path, final=True)
    told = refused(tmp_path, resume=True)
    assert "holds model_final.pth, but no checkpoint to resume from" in told
    assert f"MODEL.WEIGHTS {tmp_path}/model_final.pth" in told and "--overwrite" in told


def test_a_checkpoint_of_another_run_is_passed_over(tmp_path, caplog):
    folder = begun(tmp_path, iterations=2)
    other = {"model": {}, "iteration": 2, "run": "another"}
    add_checkpoint(tmp_path / "model_0000002.pth", other)
    assert last(tmp_path) == (folder.run, "model_0000001.pth")
    assert "model_0000002.pth is a checkpoint of run another, but" in caplog.text
    assert f"says that the folder holds run {folder.run}. Going on from" in caplog.text


def test_a_run_that_was_killed_while_it_overwrote_another_does_not_go_on_from_that(tmp_path):
    first = begun(tmp_path, iterations=2)
    (tmp_path / "run.json").write_text('{"id": "second"}')
    told = refused(tmp_path, resume=True)
    assert f"model_0000001.pth is a checkpoint of run {first.run}, but {tmp_path}/run.json" in told
    assert "holds run second" in told and told.endswith("or start over with --overwrite")


def test_checkpoints_that_were_copied_bring_their_id(tmp_path, caplog):
    folder = begun(tmp_path, iterations=2)
    add_checkpoint(tmp_path / "model_0000000.pth", {"model": {}, "iteration": 0, "run": "another"})
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    (tmp_path / "run.json").unlink()
    with caplog.at_level("INFO"):
        assert begun(tmp_path, resume=True).run == folder.run
    assert f"run.json is missing: going on with run {folder.run}, of model_000" in caplog.text
    (tmp_path / "model_0000001.pth").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="0000000.pth is a checkpoint of run another"):
        last(tmp_path)


def test_a_run_of_an_earlier_version_gets_an_id(tmp_path, caplog):
    for iteration in range(2):
        content = {"model": {}, "iteration": iteration}
        add_checkpoint(tmp_path / f"model_{iteration:07d}.pth", content)
    with caplog.at_level("INFO"):
        folder = begun(tmp_path, resume=True)
    assert "is of a version without run ids: taking all checkpoints in" in caplog.text
    assert last(tmp_path) == (folder.run, "model_0000001.pth")
    add_checkpoint(tmp_path / "model_0000002.pth", {"model": {}, "iteration": 2})  # came later
    assert last(tmp_path) == (folder.run, "model_0000001.pth")
    # An older one is still there to fall back on.
    (tmp_path / "model_0000001.pth").write_bytes(b"damaged")
    assert last(tmp_path) == (folder.run, "model_0000000.pth")


@pytest.mark.parametrize("text", ["", "[]", '{"id": 3}', '{"id": "a\\u001b"}', '{"run": "a"}'])
def test_a_damaged_record_is_refused(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    for flags in ({}, {"resume": True}):
        told = refused(tmp_path, **flags)
        assert f"{tmp_path}/run.json is not what a run writes" in told and "remove it" in told
    folder = begun(tmp_path, overwrite=True)
    assert json.loads((tmp_path / "run.json").read_text()) == {"id": folder.run}


def test_an_id_that_is_none_is_no_runs(tmp_path):
    add_checkpoint(tmp_path / "model_0000001.pth", {"model": {}, "run": ["a"]})
    with pytest.raises(CheckpointError, match="'run' must be the id of a run, got"):
        last(tmp_path)


def test_a_restart_belongs_to_the_start_that_began_the_run(tmp_path):
    folder = RunFolder(tmp_path)
    folder.launch = "torchrun 7"
    assert not folder.was_launched_by("torchrun 7")
    folder.begin("")
    other = RunFolder(tmp_path)
    assert other.was_launched_by("torchrun 7")
    assert not other.was_launched_by("torchrun 8") and not other.was_launched_by("")


# One at a time

HOLD = """
import os, sys, time
from pathlib import Path
from onenet.training.run_folder import RunFolder

with RunFolder(Path(sys.argv[1])).held():
    if os.fork() == 0:  # as processes that load data
        time.sleep(60)
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path) -> Iterator[subprocess.Popen]:
    """A process that holds ``tmp_path/run``, and a child of it."""
    env = {**os.environ, "PYTHONPATH": str(ROOT / "projects" / "OneNet")}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")],
        env=env, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout.readline() == "held\n"
    yield process
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()


def test_a_second_run_is_refused_until_the_first_one_ends_however_it_ends(holder, tmp_path):
    folder = RunFolder(tmp_path / "run")
    for _ in range(2):
        with pytest.raises(ConfigError) as error, folder.held():
            pass
        told = f"OUTPUT_DIR {tmp_path}/run: another run is working there (process {holder.pid} on "
        assert str(error.value).startswith(told)
        assert str(error.value).endswith("stop it, or give another OUTPUT_DIR")
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    deadline = time.monotonic() + 20
    while True:  # its child is still there, and may not have closed what it inherited
        try:
            with folder.held():
                break
        except ConfigError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_folder_that_cannot_be_locked_is_used_with_a_warning(tmp_path, monkeypatch, caplog):
    def lockf(*_) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.lockf", lockf)
    with RunFolder(tmp_path).held():
        pass
    assert "cannot be locked (Operation not supported): nothing keeps a second" in caplog.text


def test_windows_locks_a_byte_that_nobody_reads(tmp_path, monkeypatch):
    calls, held = [], []

    class Windows:
        LK_NBLCK = 2

        @staticmethod
        def locking(file: int, how: int, count: int) -> None:
            calls.append((os.lseek(file, 0, os.SEEK_CUR), how, count))
            if held:
                raise PermissionError(13, "Permission denied")

    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", Windows)
    with RunFolder(tmp_path).held():
        held.append(1)
        with pytest.raises(ConfigError, match=f"process {os.getpid()} on"):
            with RunFolder(tmp_path).held():
                pass
    assert calls == [(1 << 30, 2, 1)] * 2
