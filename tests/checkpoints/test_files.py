"""Checkpoint files: interrupted writes and full disks."""

from __future__ import annotations

import errno
import os
import shutil

import pytest
import torch
from helpers.full_disk import full, full_disk
from helpers.small_models import content

from onenet import files
from onenet.checkpoints.files import read_checkpoint, save_checkpoint
from onenet.checkpoints.series import add_checkpoint
from onenet.errors import WriteError
from onenet.files import remove_partial_files, write_whole


def test_a_file_is_written_whole_over_another(tmp_path):
    path = tmp_path / "new" / "a.json"
    write_whole(path, b"old")
    write_whole(path, lambda file: (file.write(b"new "), file.write(b"one")))
    assert path.read_bytes() == b"new one"
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


def test_the_name_comes_after_the_bytes_are_on_the_disk(tmp_path, monkeypatch):
    done = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(descriptor: int) -> None:
        done.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", lambda *names: done.append("name") or replace(*names))
    assert add_checkpoint(tmp_path / "model_0000001.pth", content(1))
    assert done == ["file", "name", "folder"] * 2  # the checkpoint, then last_checkpoint


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
def test_a_crash_while_writing_leaves_the_old_file(tmp_path, monkeypatch, error):
    path = tmp_path / "m.pth"
    save_checkpoint(path, content(1))

    def crash(content, file):
        file.write(b"half")
        raise error

    expected = WriteError if isinstance(error, OSError) else KeyboardInterrupt
    with monkeypatch.context() as patch, pytest.raises(expected):
        patch.setattr(torch, "save", crash)
        save_checkpoint(path, content(2))
    assert read_checkpoint(path)["model"]["a"][0] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["m.pth"]


@full_disk
def test_a_full_disk_says_how_many_bytes_are_missing(tmp_path, monkeypatch):
    path = tmp_path / "m.pth"
    save_checkpoint(path, content(1))
    size = path.stat().st_size
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 100))
    full(path)
    told = f"m.pth could not be written: No space left on device. It takes {size:,} bytes, "
    with pytest.raises(WriteError, match=f"{told}{size - 100:,} more than are free; make room"):
        save_checkpoint(path, content(2))
    assert read_checkpoint(path)["model"]["a"][0] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["m.pth"]
    save_checkpoint(path, content(2))
    assert read_checkpoint(path)["model"]["a"][0] == 2


def test_what_a_killed_run_left_is_removed_and_nothing_else(tmp_path):
    ours = [".model_0000003.pth.partial", "inference/.coco_instances_results.json.partial"]
    others = ["a.partial", ".hidden", "inference/b.partial", "other/.c.partial", ".d.partial/file"]
    for name in (*ours, *others):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    remove_partial_files(tmp_path)
    left = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    assert left == set(others)
