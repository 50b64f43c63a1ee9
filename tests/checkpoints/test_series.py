"""The checkpoints of a run: which one it resumes from, and which ones are kept."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from helpers.full_disk import flip_a_bit, full, full_disk
from helpers.runs import load
from helpers.small_models import content

from onenet.checkpoints.files import read_checkpoint
from onenet.checkpoints.series import add_checkpoint, find_checkpoints, read_last_checkpoint
from onenet.errors import CheckpointError


@pytest.fixture
def run(tmp_path) -> Path:
    """A run's folder with checkpoints after 2, 4 and 6 iterations."""
    for number in (1, 3, 5):
        assert add_checkpoint(tmp_path / f"model_{number:07d}.pth", content(number))
    return tmp_path


def resumed(folder: Path) -> float:
    """The number of the checkpoint that a run would resume from."""
    path, found = read_last_checkpoint(folder)
    number = found["model"]["a"][0].item()
    assert path.name == f"model_{int(number):07d}.pth"
    return number


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def test_the_last_checkpoint(run):
    assert resumed(run) == 5
    assert (run / "last_checkpoint").read_text() == "model_0000005.pth"
    (run / "last_checkpoint").write_text("model_0000003.pth\n")  # by hand, to go back
    assert resumed(run) == 3
    assert [path.name[12] for path in find_checkpoints(run)] == ["3", "1", "5"]
    assert read_last_checkpoint(run / "nowhere") is None


@pytest.mark.parametrize("harm", [flip_a_bit, cut, lambda path: path.write_bytes(b"")])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(run, caplog, harm):
    harm(run / "model_0000005.pth")
    assert resumed(run) == 3
    (line,) = caplog.messages
    assert "model_0000005.pth cannot be read as a checkpoint" in line
    assert line.endswith(f"Going on from {run / 'model_0000003.pth'}")
    assert caplog.records[0].levelname == "WARNING"


def test_torch_alone_would_take_a_flipped_bit(run):
    flip_a_bit(run / "model_0000005.pth")
    assert set(load(run / "model_0000005.pth")["model"]["a"].tolist()) > {5.0}
    with pytest.raises(CheckpointError, match="the checksum of archive/data/0 in it is wrong"):
        read_checkpoint(run / "model_0000005.pth", verify=True)


def test_two_damaged_checkpoints_are_both_told(run, caplog):
    flip_a_bit(run / "model_0000005.pth")
    cut(run / "model_0000003.pth")
    assert resumed(run) == 1
    assert [message.split(" cannot")[0][-17:] for message in caplog.messages] == [
        "model_0000005.pth", "model_0000003.pth",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("tag", "number"),
    [
        ("", 5),
        ("\0\xff" * 3000, 5),
        ("x" * 3000, 5),
        ("../../etc", 5),
        ("model_0000009.pth", 5),
        ("model_0000004.pth", 3),
    ],
)
def test_a_last_checkpoint_file_that_names_none(run, caplog, tag, number):
    (run / "last_checkpoint").write_bytes(tag.encode("latin-1"))
    assert resumed(run) == number
    (line,) = caplog.messages
    assert "last_checkpoint names" in line and "which is not there. Going on from" in line


def test_a_last_checkpoint_file_that_is_gone(run, caplog):
    (run / "last_checkpoint").unlink()
    assert resumed(run) == 5
    assert "last_checkpoint is missing. Going on from" in caplog.text


def test_no_checkpoint_is_left(run):
    for path in run.glob("model_*.pth"):
        cut(path)
    with pytest.raises(CheckpointError, match="0005.pth cannot.*0001.pth cannot.*with --overwrite"):
        read_last_checkpoint(run)
    for path in run.glob("model_*.pth"):
        path.unlink()
    with pytest.raises(
        CheckpointError, match="names 'model_0000005.pth', which is not there.*copy"
    ):
        read_last_checkpoint(run)


# What is kept


def test_checkpoints_that_are_not_kept(run):
    others = ["model_final.pth", "model_best.pth", "model_0000000.pth.bak", "my_0000001.pth"]
    for name in (*others, "model_0000009.pth"):  # the last from before the user went back
        (run / name).touch()
    assert add_checkpoint(run / "model_0000007.pth", content(7), keep=2)
    left = {path.name for path in run.iterdir()}
    kept = {"model_0000005.pth", "model_0000007.pth", "model_0000009.pth", "last_checkpoint"}
    assert left == kept | set(others)


@full_disk
@pytest.mark.parametrize("name", ["model_0000007.pth", "last_checkpoint"])
def test_nothing_is_removed_for_a_checkpoint_that_could_not_be_written(run, caplog, name):
    full(run / name)
    assert not add_checkpoint(run / "model_0000007.pth", content(7), keep=1)
    assert "No space left on device" in caplog.text and "the next save tries again" in caplog.text
    assert resumed(run) == 5 and (run / "model_0000001.pth").exists()
