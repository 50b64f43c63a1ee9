"""DATALOADER.SKIP_UNREADABLE: others replace unreadable images, and the log always says so."""

from __future__ import annotations

import logging
import pickle
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.runs import edit_json, load, train, write_config

from onenet.data import unreadable
from onenet.data.unreadable import SkippedImages, read_next
from onenet.errors import DatasetError, UnreadableImageError
from onenet.lightning.config import load_cfg
from onenet.lightning.loader import build_train_loader

BROKEN = ("000002.jpg", "000003.jpg", "000011.jpg")  # of 12 images


def reader(*bad: int) -> Any:
    def read(index: int) -> str:
        if index in bad:
            raise UnreadableImageError(f"image {index} is bad")
        return f"pixels of {index}"

    return read


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (1, ("pixels of 1", ())),
        (2, ("pixels of 4", ("image 2 is bad", "image 3 is bad"))),
        (3, ("pixels of 4", ("image 3 is bad",))),
        (5, ("pixels of 0", ("image 5 is bad",))),
    ],
)
def test_the_next_image_stands_in(index, expected):
    assert read_next(reader(2, 3, 5), index, 6) == expected


def test_no_image_at_all():
    with pytest.raises(DatasetError, match=r"None of the 2 training images .* image 1 is bad"):
        read_next(reader(0, 1), 1, 2)


def test_other_errors_are_not_passed_over():
    def read(_: int) -> None:
        raise DatasetError("something else")

    with pytest.raises(DatasetError, match="^something else$"):
        read_next(read, 0, 3)


def test_each_image_is_told_once_and_all_are_listed(caplog):
    skipped = SkippedImages()
    batches = [["", "ab"], ["b", ""], ["b", "c"]]
    with caplog.at_level(logging.WARNING, logger="onenet"):
        assert list(skipped.watch(batches, str)) == batches
        assert [r.getMessage() for r in caplog.records] == [f"Skipped: {x}" for x in "abc"]
        caplog.clear()
        skipped.report()
    lines = caplog.records[0].getMessage().splitlines()
    assert "3 images were skipped since this start, 5 times" in lines[0]
    assert lines[1:] == ["  1 x a", "  3 x b", "  1 x c"]
    caplog.clear()
    SkippedImages().report()
    assert caplog.records == []


@pytest.mark.parametrize("rank", [0, 1])
def test_the_list_is_of_all_processes(caplog, monkeypatch, rank):
    def gather(shares: list[Any], mine: Any) -> None:
        shares[:] = [mine, Counter({"b": 2, "c": 1})]

    monkeypatch.setattr(unreadable.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(unreadable.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(unreadable.dist, "get_rank", lambda: rank)
    monkeypatch.setattr(unreadable.dist, "all_gather_object", gather)
    skipped = SkippedImages()
    skipped.times.update(["a", "b"])
    with caplog.at_level(logging.WARNING, logger="onenet"):
        skipped.report()
    lines = [line for record in caplog.records for line in record.getMessage().splitlines()[1:]]
    assert lines == (["  1 x a", "  3 x b", "  1 x c"] if rank == 0 else [])


@pytest.fixture
def broken(shapes, tmp_path) -> Path:
    """A data set in which one image is not an image, one is missing and one is cut short."""
    data = edit_json(shapes, tmp_path / "broken", "train", lambda content: None)
    first, second, third = (data / "train" / name for name in BROKEN)
    first.write_bytes(b"no image")
    second.unlink()
    third.write_bytes((shapes / "train" / "000000.jpg").read_bytes()[:700])
    return data


def loaded(config: Path, count: int, start: int = 0, *opts: str) -> list[list[Any]]:
    return list(islice(build_train_loader(load_cfg(config, opts), start_iteration=start), count))


def test_the_samples_do_not_depend_on_workers_or_interruptions(broken, tmp_path):
    config = write_config(tmp_path, broken, DATALOADER__SKIP_UNREADABLE=True)
    straight = loaded(config, 8)
    assert all(len(batch) == 4 for batch in straight)
    resumed = loaded(config, 3, 5)
    workers = loaded(config, 8, 0, "DATALOADER.NUM_WORKERS", "2")
    for other, expected in ((resumed, straight[5:]), (workers, straight)):
        for a, b in zip(sum(other, []), sum(expected, []), strict=True):
            assert (a.file_name, a.skipped) == (b.file_name, b.skipped)
            assert torch.equal(a.image, b.image) and torch.equal(a.targets.boxes, b.targets.boxes)
    items = sum(straight, [])
    assert not any(Path(item.file_name).name in BROKEN for item in items)
    reported = {text.split("'")[1] for item in items for text in item.skipped}
    assert reported == {str(broken / "train" / name) for name in BROKEN}
    assert pickle.loads(pickle.dumps(items[0])).skipped == items[0].skipped


def test_training_lists_them_at_the_end(broken, tmp_path, capsys):
    config = write_config(
        tmp_path, broken, DATALOADER__SKIP_UNREADABLE=True, SOLVER__MAX_ITER=3, DATASETS__TEST=[]
    )
    train(config)
    out = capsys.readouterr().out
    assert out.count("Skipped: ") == 3
    end = out[out.index("DATALOADER.SKIP_UNREADABLE: 3 images were skipped") :]
    assert all(str(broken / "train" / name) in end for name in BROKEN)
    assert "does not exist" in end and "cannot be read" in end
    assert out.partition("] DATALOADER")[2].count("000003.jpg") == 1


def test_an_interrupted_training_ends_with_the_same_weights(broken, tmp_path):
    config = write_config(
        tmp_path,
        broken,
        DATALOADER__SKIP_UNREADABLE=True,
        DATASETS__TEST=[],
        SOLVER__MAX_ITER=4,
        SOLVER__CHECKPOINT_PERIOD=2,
    )
    train(config)
    run = tmp_path / "run"
    a = load(run / "model_final.pth")["model"]
    # As if the run had been interrupted after its second iteration.
    for name in ("model_0000003.pth", "model_final.pth"):
        (run / name).unlink()
    (run / "last_checkpoint").write_text("model_0000001.pth")
    train(config, "--resume")
    b = load(run / "model_final.pth")["model"]
    assert all(torch.equal(a[name], b[name]) for name in a)


def refused(capsys: pytest.CaptureFixture, config: Path, *words: Any) -> str:
    with pytest.raises(SystemExit) as stop:
        train(config, *words)
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_without_it_missing_images_are_told_before_training(broken, tmp_path, capsys):
    error = refused(capsys, write_config(tmp_path, broken))
    assert "1 of 1" in error and "000003.jpg" in error and "DATALOADER.SKIP_UNREADABLE" in error
    assert not (tmp_path / "run").exists()


def test_a_data_set_without_any_image_is_told_with_it_too(broken, tmp_path, capsys):
    for image in (broken / "train").iterdir():
        image.unlink()
    config = write_config(tmp_path, broken, DATALOADER__SKIP_UNREADABLE=True)
    assert "Is it the right folder?" in refused(capsys, config)


@pytest.mark.parametrize("damage", ["missing", "broken"])
def test_evaluation_passes_over_nothing(shapes, tmp_path, capsys, damage):
    data = edit_json(shapes, tmp_path / "broken", "val", lambda content: None)
    image = data / "val" / "000001.jpg"
    if damage == "missing":
        image.unlink()
    else:
        image.write_bytes(b"no image")
    config = write_config(tmp_path, data, DATALOADER__SKIP_UNREADABLE=True)
    error = refused(capsys, config, "--eval-only")
    assert "000001.jpg" in error and ("not in" if damage == "missing" else "cannot be") in error


def test_detectron2_does_the_same(broken, tmp_path, capsys):
    pytest.importorskip("detectron2")
    from helpers.detectron2_runs import train_d2

    config = write_config(
        tmp_path, broken, SOLVER__MAX_ITER=6, DATASETS__TEST=[], DATALOADER__NUM_WORKERS=2
    )
    with pytest.raises(SystemExit) as stop:
        train_d2(config)
    assert stop.value.code == 2 and "000003.jpg" in capsys.readouterr().err
    train_d2(config, "DATALOADER.SKIP_UNREADABLE", "True")
    out = capsys.readouterr().out
    end = out[out.index("DATALOADER.SKIP_UNREADABLE: 3 images were skipped") :]
    assert all(str(broken / "train" / name) in end for name in BROKEN)


def test_detectron2s_evaluation_passes_over_nothing(shapes, tmp_path, capsys):
    pytest.importorskip("detectron2")
    from helpers.detectron2_runs import train_d2

    data = edit_json(shapes, tmp_path / "lost", "val", lambda content: None)
    (data / "val" / "000001.jpg").unlink()
    config = write_config(tmp_path, data, DATALOADER__SKIP_UNREADABLE=True)
    with pytest.raises(SystemExit) as stop:
        train_d2(config, "--eval-only")
    assert stop.value.code == 2 and "000001.jpg" in capsys.readouterr().err
