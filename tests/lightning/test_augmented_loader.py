"""INPUT.AUGMENTATIONS: what training sees depends on the seed and an item's place alone."""

from __future__ import annotations

import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.runs import load, refused, train, write_config

from onenet.data.dataset import CocoDetection
from onenet.data.sources import find_dataset
from onenet.data.transforms import TrainTransform
from onenet.errors import UnreadableImageError
from onenet.lightning.config import load_cfg
from onenet.lightning.items import TrainItem
from onenet.lightning.loader import build_train_loader

LIST = (
    '["mosaic(probability=0.7)", "mixup(probability=0.5)", "scale_jitter", "flip(vertical)", '
    '"affine", "crop", "photometric(hue=0.05)", "grey", "blur", "jpeg"]'
)


@pytest.fixture(scope="module")
def config(shapes, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("augmented")
    return write_config(folder, shapes, DATASETS__TEST=[], SOLVER__MAX_ITER=8)


def items(config: Path, count: int, *opts: Any, **place: int) -> list[TrainItem]:
    """The images of so many batches."""
    cfg = load_cfg(config, list(map(str, opts)))
    return [item for batch in islice(build_train_loader(cfg, **place), count) for item in batch]


def same(one: TrainItem, other: TrainItem) -> bool:
    return (
        one.file_name == other.file_name
        and one.skipped == other.skipped
        and one.image.shape == other.image.shape
        and torch.equal(one.image, other.image)
        and torch.equal(one.targets.boxes, other.targets.boxes)
        and torch.equal(one.targets.labels, other.targets.labels)
    )


def all_same(one: list[TrainItem], other: list[TrainItem]) -> bool:
    return len(one) == len(other) and all(map(same, one, other))


def test_neither_workers_nor_interruptions_nor_processes_change_what_is_seen(config):
    words = "INPUT.AUGMENTATIONS", LIST
    whole = items(config, 5, *words)
    assert all_same(items(config, 5, *words, "DATALOADER.NUM_WORKERS", 2), whole)
    assert all_same(items(config, 2, *words, start_iteration=3), whole[12:])
    for rank in range(2):
        assert all_same(items(config, 5, *words, rank=rank, world_size=2), whole[rank::2])
    assert not any(map(same, whole, items(config, 5, *words, "SEED", 12)))
    assert not any(map(same, whole, items(config, 5)))


def test_an_empty_list_is_the_plain_pipeline(config, shapes):
    cfg = load_cfg(config)
    data = CocoDetection(
        find_dataset(cfg.DATASETS.TRAIN[0]), keep_empty=not cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    )
    crop = cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE
    plain = TrainTransform(min_sizes=(48, 64), max_size=64, crop=crop)
    loader = build_train_loader(cfg).loader
    for batch, places in zip(islice(loader, 3), loader.batch_sampler, strict=False):
        for item, place in zip(batch, places, strict=True):
            record = data.record(place.index)
            rng = np.random.default_rng((cfg.SEED, place.position))
            image, boxes, labels = plain(data.read_image(record), record.boxes, record.labels, rng)
            assert (item.image.permute(1, 2, 0).numpy() == image).all()
            assert (item.targets.boxes.numpy() == boxes).all()
            assert item.targets.labels.tolist() == labels.tolist()


def test_strong_ones_stop_at_their_iteration(config):
    words = "INPUT.AUGMENTATIONS", '["mosaic(probability=1)"]', "INPUT.AUGMENTATIONS_OFF", 0.25
    plain = items(config, 8)
    found = [same(*pair) for pair in zip(items(config, 8, *words), plain, strict=True)]
    assert found == [False] * 24 + [True] * 8
    late = items(config, 3, *words, "DATALOADER.NUM_WORKERS", 2, start_iteration=5)
    assert [same(*pair) for pair in zip(late, plain[20:], strict=True)] == found[20:]


def test_a_flip_in_the_list_is_not_done_twice(config):
    plain = items(config, 2, "INPUT.RANDOM_FLIP", "none", "INPUT.CROP.ENABLED", False)
    words = "INPUT.AUGMENTATIONS", '["flip(probability=1)", "crop(probability=0)"]'
    for one, other in zip(plain, items(config, 2, *words), strict=True):
        assert torch.equal(one.image.flip(2), other.image)


def test_bgr_is_the_same_picture(config):
    words = "INPUT.AUGMENTATIONS", LIST
    rgb, bgr = items(config, 2, *words), items(config, 2, *words, "INPUT.FORMAT", "BGR")
    assert all(
        torch.equal(one.image.flip(0), other.image) for one, other in zip(rgb, bgr, strict=True)
    )


def test_unreadable_images_of_a_mosaic(config, shapes, tmp_path):
    data = shutil.copytree(shapes, tmp_path / "broken")
    (broken := data / "train" / "000003.jpg").write_bytes(b"no image")
    copy = write_config(tmp_path, data, DATASETS__TEST=[], SOLVER__MAX_ITER=8)
    words = "INPUT.AUGMENTATIONS", '["mosaic(probability=1)"]'
    with pytest.raises(UnreadableImageError, match="000003.jpg' cannot be read"):
        items(copy, 4, *words)
    skip = "DATALOADER.SKIP_UNREADABLE", True
    plain = sum(len(item.skipped) for item in items(copy, 4, *skip))
    skipped = [text for item in items(copy, 4, *words, *skip) for text in item.skipped]
    assert len(skipped) > plain and all(str(broken) in text for text in skipped)


@pytest.mark.slow
def test_an_interrupted_training_ends_with_the_same_weights(config, tmp_path):
    words = [
        "INPUT.AUGMENTATIONS", LIST, "SOLVER.MAX_ITER", 4, "SOLVER.CHECKPOINT_PERIOD", 2,
        "INPUT.AUGMENTATIONS_OFF", 0.25, "OUTPUT_DIR", tmp_path,
    ]  # fmt: skip
    train(config, *words)
    expected = load(tmp_path / "model_final.pth")["model"]
    for name in ("model_0000003.pth", "model_final.pth"):
        (tmp_path / name).unlink()
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    train(config, "--resume", *words)
    found = load(tmp_path / "model_final.pth")["model"]
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_a_wrong_one_is_told_before_training(config, tmp_path, capsys):
    words = ("INPUT.AUGMENTATIONS", '["mozaic"]', "OUTPUT_DIR", tmp_path / "run")
    assert "got 'mozaic'; did you mean 'mosaic'?" in refused(train, capsys, config, *words)
    words = ("INPUT.AUGMENTATIONS", "[flip]", "OUTPUT_DIR", tmp_path / "run")
    assert "INPUT.AUGMENTATIONS is '[flip]'; expected a list" in refused(
        train, capsys, config, *words
    )
    assert not (tmp_path / "run").exists()
