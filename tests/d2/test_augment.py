"""INPUT.AUGMENTATIONS in Detectron2's loader."""

from __future__ import annotations

import pytest

pytest.importorskip("detectron2")

import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from helpers.detectron2_runs import train_d2
from helpers.runs import metrics, refused, write_config

from onenet.d2 import OneNetDatasetMapper, Trainer, register_datasets
from onenet.d2.config import load_cfg
from onenet.d2.loader import build_train_loader
from onenet.errors import ConfigError, UnreadableImageError

LIST = (
    '["mosaic(probability=0.7)", "mixup", "scale_jitter", "flip(vertical)", "photometric", "crop"]'
)


@pytest.fixture(scope="module")
def config(shapes, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("augmented")
    path = write_config(folder, shapes, DATASETS__TEST=[], SOLVER__MAX_ITER=8)
    register_datasets(load_cfg(path).DATASETS.TRAIN)
    return path


def inputs(config: Path, count: int, *opts: Any, start: int = 0) -> list[dict[str, Any]]:
    """The images of so many batches, with INPUT.AUGMENTATIONS ``LIST`` unless ``opts`` say else."""
    words = ["INPUT.AUGMENTATIONS", LIST, *map(str, opts)]
    loader = build_train_loader(load_cfg(config, words))
    loader.start_at(start)
    return [one for batch in islice(loader, count) for one in batch]


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    a, b = one["instances"], other["instances"]
    return (
        one["file_name"] == other["file_name"]
        and torch.equal(one["image"], other["image"])
        and torch.equal(a.gt_boxes.tensor, b.gt_boxes.tensor)
        and torch.equal(a.gt_classes, b.gt_classes)
    )


def all_same(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> bool:
    return len(one) == len(other) and all(map(same, one, other))


@pytest.mark.parametrize("grouping", [True, False])
def test_workers_do_not_change_what_is_seen(config, grouping):
    words = "DATALOADER.ASPECT_RATIO_GROUPING", grouping
    state = np.random.get_state()[1].tolist()
    whole = inputs(config, 4, *words)
    assert np.random.get_state()[1].tolist() == state
    found = inputs(config, 4, *words, "DATALOADER.NUM_WORKERS", 2)
    if grouping:  # Detectron2 then takes an image from each worker in turn
        for images in (whole, found):
            images.sort(key=lambda one: one["image"].numpy().tobytes())
    assert all_same(found, whole)
    assert len({one["image"].numpy().tobytes() for one in whole}) == 16
    for one in whole:
        assert one["image"].dtype == torch.uint8 and one["skipped"] == ()
        assert one["instances"].image_size == tuple(one["image"].shape[1:])
        assert one["instances"].gt_classes.dtype == torch.int64
        boxes = one["instances"].gt_boxes.tensor
        height, width = one["instances"].image_size
        assert (boxes >= 0).all() and (boxes[:, 2] <= width).all() and (boxes[:, 3] <= height).all()


def test_strong_ones_stop_and_a_resumed_run_knows_its_iteration(config):
    words = ["INPUT.AUGMENTATIONS", '["mosaic(probability=1)"]', "DATALOADER.ASPECT_RATIO_GROUPING"]
    words += [False, "INPUT.AUGMENTATIONS_OFF"]
    weak, found = inputs(config, 8, *words, 1.0), inputs(config, 8, *words, 0.25)
    assert [same(*pair) for pair in zip(found, weak, strict=True)] == [False] * 24 + [True] * 8
    resumed = inputs(config, 2, *words, 0.25, start=5)
    expected = inputs(config, 2, *words, 1.0, start=5)
    stopped = [same(*pair) for pair in zip(resumed, expected, strict=True)]
    assert stopped == [False] * 4 + [True] * 4


def test_bgr_is_the_same_picture(config):
    rgb, bgr = inputs(config, 2), inputs(config, 2, "INPUT.FORMAT", "BGR")
    assert all(torch.equal(a["image"].flip(0), b["image"]) for a, b in zip(rgb, bgr, strict=True))


def test_a_flip_in_the_list_is_not_done_twice(config):
    once = '["flip(probability=1)", "crop(probability=0)"]'
    off = ("INPUT.RANDOM_FLIP", "none", "INPUT.CROP.ENABLED", "False")
    for one in inputs(config, 2, "INPUT.AUGMENTATIONS", once):
        size = f"({min(one['image'].shape[1:])},)"
        cfg = load_cfg(config, [*off, "INPUT.MIN_SIZE_TRAIN", size])
        plain = OneNetDatasetMapper(cfg, is_train=True)({**one, "annotations": []})
        assert torch.equal(plain["image"].flip(2), one["image"])


def test_unreadable_images_of_a_mosaic(shapes, tmp_path):
    data = shutil.copytree(shapes, tmp_path / "broken")
    (data / "train" / "000003.jpg").write_bytes(b"no image")
    copy = write_config(tmp_path, data, DATASETS__TEST=[], SOLVER__MAX_ITER=8)
    register_datasets(load_cfg(copy).DATASETS.TRAIN)
    words = "INPUT.AUGMENTATIONS", '["mosaic(probability=1)"]'
    with pytest.raises(UnreadableImageError, match="000003.jpg' cannot be read"):
        inputs(copy, 4, *words)
    found = inputs(copy, 4, *words, "DATALOADER.SKIP_UNREADABLE", True)
    assert sum(len(one["skipped"]) for one in found) > 1


def test_a_training_that_is_resumed(config, tmp_path, monkeypatch):
    words = ["INPUT.AUGMENTATIONS", LIST, "OUTPUT_DIR", tmp_path, "SOLVER.CHECKPOINT_PERIOD", 1]
    train_d2(config, *words, "SOLVER.MAX_ITER", 1)
    seen = []
    monkeypatch.setattr(Trainer, "train", lambda self: seen.append(self))
    train_d2(config, "--resume", *words, "SOLVER.MAX_ITER", 2)
    assert seen[0]._trainer.data_loader._sampler.start == 1
    assert len(metrics(tmp_path)) >= 1


def test_the_mapper_alone_refuses(config):
    cfg = load_cfg(config, ["INPUT.AUGMENTATIONS", '["mosaic"]'])
    with pytest.raises(ConfigError, match="INPUT.AUGMENTATIONS needs onenet.d2.loader"):
        OneNetDatasetMapper(cfg, is_train=True)
    OneNetDatasetMapper(cfg, is_train=False)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ('["mozaic"]', "got 'mozaic'; did you mean 'mosaic'?"),
        ('["mosaic(lo=1)"]', "mosaic has no parameter 'lo'"),
        ("[3]", "INPUT.AUGMENTATIONS is [3]; expected a list of augmentations"),
    ],
)
def test_refused(config, tmp_path, capsys, value, told):
    words = ("INPUT.AUGMENTATIONS", value, "OUTPUT_DIR", tmp_path)
    assert told in refused(train_d2, capsys, config, *words)
