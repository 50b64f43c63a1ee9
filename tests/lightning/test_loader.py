"""Loaded items: what they hold, and that nothing but seed and position decides it."""

from __future__ import annotations

import json
import logging
import pickle
import traceback
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from fvcore.common.config import CfgNode
from PIL import Image

from onenet.data.dataset import CocoDetection
from onenet.data.sources import DatasetSource
from onenet.data.transforms import TrainTransform
from onenet.errors import DatasetError
from onenet.lightning.datasets import TrainDataset
from onenet.lightning.items import TestItem, TrainItem
from onenet.lightning.loader import build_test_loader, build_train_loader
from onenet.lightning.sampler import Place


def make_dataset(folder: Path, count: int = 6, name: str = "data") -> str:
    """Write images of both orientations with id, id - 1 boxes each; returns DATASETS' entry."""
    rng = np.random.default_rng(count)
    (folder / name).mkdir(parents=True)
    images, annotations = [], []
    for image_id in range(1, count + 1):
        height, width = (24, 32) if image_id % 3 else (32, 20)
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name / f"{image_id}.png")
        images.append(
            {"id": image_id, "file_name": f"{image_id}.png", "height": height, "width": width}
        )
        for k in range(image_id - 1):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": 1 + k % 2,
                    "bbox": [k, 2 * k, 10, 12],
                }
            )
    categories = [{"id": 1, "name": "disc"}, {"id": 2, "name": "star"}]
    data = {"images": images, "annotations": annotations, "categories": categories}
    (folder / f"{name}.json").write_text(json.dumps(data))
    return f"{folder / name}.json:{folder / name}"


def config(*train: str, workers: int = 0, group: bool = True, keep_empty: bool = True) -> CfgNode:
    cfg = CfgNode()
    cfg.SEED = 7
    cfg.MODEL = CfgNode({"DEVICE": "cpu", "OneNet": {"NUM_CLASSES": 2}})
    cfg.DATASETS = CfgNode({"TRAIN": train})
    cfg.DATALOADER = CfgNode(
        {
            "NUM_WORKERS": workers,
            "ASPECT_RATIO_GROUPING": group,
            "FILTER_EMPTY_ANNOTATIONS": not keep_empty,
            "SKIP_UNREADABLE": False,
            "SAMPLER_TRAIN": "TrainingSampler",
        }
    )
    cfg.SOLVER = CfgNode({"IMS_PER_BATCH": 4, "MAX_ITER": 8})
    cfg.TEST = CfgNode({"IMS_PER_BATCH": 1})
    cfg.INPUT = CfgNode(
        {
            "FORMAT": "RGB",
            "RANDOM_FLIP": "horizontal",
            "MIN_SIZE_TRAIN": (12, 16, 20),
            "MAX_SIZE_TRAIN": 40,
            "MIN_SIZE_TRAIN_SAMPLING": "choice",
            "MIN_SIZE_TEST": 12,
            "MAX_SIZE_TEST": 100,
            "AUGMENTATIONS": [],
            "AUGMENTATIONS_OFF": 0.25,
            "CROP": {"ENABLED": True, "TYPE": "relative_range", "SIZE": [0.5, 0.5]},
        }
    )
    return cfg


def load(entry: str) -> CocoDetection:
    json_file, image_root = entry.split(".json:")
    return CocoDetection(DatasetSource("mine", Path(f"{json_file}.json"), Path(image_root)))


def take(count: int, cfg: CfgNode, **kwargs) -> list[list[TrainItem]]:
    return list(islice(build_train_loader(cfg, **kwargs), count))


def assert_equal(first: list[TrainItem], second: list[TrainItem]) -> None:
    for a, b in zip(first, second, strict=True):
        assert (a.image_id, a.file_name) == (b.image_id, b.file_name)
        assert torch.equal(a.image, b.image)
        assert torch.equal(a.targets.boxes, b.targets.boxes)
        assert torch.equal(a.targets.labels, b.targets.labels)
        assert a.targets.image_size == b.targets.image_size


def test_items_are_what_they_say(tmp_path):
    entry = make_dataset(tmp_path)
    for item in sum(take(5, config(entry)), []):
        assert item.image.dtype == torch.uint8 and item.image.shape[0] == 3
        assert item.image.is_contiguous()
        assert item.targets.image_size == tuple(item.image.shape[1:])
        assert item.targets.boxes.dtype == torch.float32
        assert item.targets.labels.dtype == torch.int64
        assert len(item.targets) <= item.image_id - 1
        assert item.file_name == str(tmp_path / "data" / f"{item.image_id}.png")


def test_workers_do_not_change_the_items(tmp_path):
    entry = make_dataset(tmp_path)
    alone = take(5, config(entry))
    for ours, theirs in zip(alone, take(5, config(entry, workers=2)), strict=True):
        assert_equal(ours, theirs)


def test_resumed_items_are_those_of_an_uninterrupted_run(tmp_path):
    entry = make_dataset(tmp_path)
    whole = take(7, config(entry))
    for ours, theirs in zip(whole[3:], take(4, config(entry), start_iteration=3), strict=True):
        assert_equal(ours, theirs)


def test_processes_load_the_items_of_a_single_one(tmp_path):
    entry = make_dataset(tmp_path)
    shares = [take(4, config(entry), rank=rank, world_size=2) for rank in range(2)]
    for whole, even, odd in zip(take(4, config(entry)), *shares, strict=True):
        assert_equal(whole[::2], even)
        assert_equal(whole[1::2], odd)


def test_an_image_looks_different_each_time(tmp_path):
    entry = make_dataset(tmp_path, count=1)
    images = {s.image.numpy().tobytes() for s in sum(take(4, config(entry)), [])}
    assert len(images) > 8


def test_images_without_objects_are_kept_or_dropped(tmp_path):
    entry = make_dataset(tmp_path)  # image 1 has none
    kept = {s.image_id for s in sum(take(6, config(entry, group=False)), [])}
    dropped = {s.image_id for s in sum(take(6, config(entry, group=False, keep_empty=False)), [])}
    assert kept == {1, 2, 3, 4, 5, 6} and dropped == {2, 3, 4, 5, 6}


def test_several_data_sets_are_one_after_the_other(tmp_path):
    first, second = make_dataset(tmp_path, 2, "a"), make_dataset(tmp_path, 3, "b")
    transform = TrainTransform(min_sizes=(0,), max_size=99, flip="none")
    data = TrainDataset([load(first), load(second)], transform, image_format="BGR", seed=0)
    names = [f"{name}/{i}.png" for name, count in (("a", 2), ("b", 3)) for i in range(1, count + 1)]
    assert [data[Place(0, i, 0)].file_name for i in range(5)] == [
        str(tmp_path / name) for name in names
    ]
    assert len(data) == 5 and data.wide.tolist() == [True, True, True, True, False]
    pixels = np.asarray(Image.open(tmp_path / "b" / "2.png"))
    assert (data[Place(0, 3, 0)].image.numpy() == pixels[:, :, ::-1].transpose(2, 0, 1)).all()


def test_data_sets_with_other_classes_are_an_error(tmp_path):
    first, second = make_dataset(tmp_path, 2, "a"), make_dataset(tmp_path, 2, "b")
    text = (tmp_path / "b.json").read_text()
    (tmp_path / "b.json").write_text(text.replace("star", "moon"))
    with pytest.raises(DatasetError, match="same classes.*a.json.*'star'.*b.json.*'moon'"):
        build_train_loader(config(first, second))


def test_no_data_set_is_an_error():
    with pytest.raises(DatasetError, match="DATASETS.TRAIN is empty"):
        build_train_loader(config())


def test_wrong_number_of_classes_is_an_error(tmp_path):
    entry = make_dataset(tmp_path)
    cfg = config(entry)
    cfg.MODEL.OneNet.NUM_CLASSES = 80
    for build in (lambda: build_train_loader(cfg), lambda: build_test_loader(cfg, load(entry))):
        with pytest.raises(DatasetError, match="data.json has 2 classes .disc, star., but"):
            build()


def test_batch_that_processes_cannot_share_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="4 images for 3 processes"):
        build_train_loader(config(make_dataset(tmp_path)), world_size=3)


@pytest.mark.parametrize("workers", [0, 2])
def test_error_of_an_image_reaches_the_user_as_its_message(tmp_path, workers):
    entry = make_dataset(tmp_path, count=2)
    (tmp_path / "data" / "2.png").write_bytes(b"no image")
    with pytest.raises(DatasetError) as error:
        take(1, config(entry, workers=workers))
    # The frames of a worker's error hold the loader: freed by reference count, it stops its workers
    # at once; left to the garbage collector, it waits for them until a timeout.
    traceback.clear_frames(error.tb)
    text = str(error.value)
    assert text.startswith(f"Image '{tmp_path / 'data' / '2.png'}' cannot be read: ")
    assert "Traceback" not in text and not text.endswith("\n")


def test_image_of_another_size_than_the_json_says_is_an_error(tmp_path):
    entry = make_dataset(tmp_path, count=2)
    Image.new("RGB", (24, 32)).save(tmp_path / "data" / "2.png")
    for loader in (build_train_loader(config(entry)), build_test_loader(config(), load(entry))):
        with pytest.raises(DatasetError) as error:
            list(islice(loader, 3))
        text = str(error.value)
        assert "2.png' is 24 x 32" in text and "data.json says 32 x 24 for image id 2" in text


def test_an_item_survives_pickling(tmp_path):
    (item, *_), *_ = take(1, config(make_dataset(tmp_path)))
    assert_equal([item], [pickle.loads(pickle.dumps(item))])


@pytest.mark.parametrize("workers, world_size", [(0, 1), (0, 4), (0, 7), (2, 4)])
def test_test_loaders_cover_every_image_once(tmp_path, workers, world_size):
    data = load(make_dataset(tmp_path))
    shares = [
        [
            item
            for batch in build_test_loader(
                config(workers=workers), data, rank=rank, world_size=world_size
            )
            for item in batch
        ]
        for rank in range(world_size)
    ]
    assert [s.image_id for s in shares[0]] == list(range(1, 7, world_size))
    assert sorted(s.image_id for share in shares for s in share) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("workers, world_size", [(0, 1), (0, 2), (2, 1)])
def test_images_of_one_padded_shape_come_together(tmp_path, workers, world_size):
    """30 × 40 and 31 × 40 px are padded to 32 × 64, 48 × 30 px to 64 × 32."""
    data = load(make_dataset(tmp_path, count=9))
    data.sizes[4] = 25, 32
    image = Image.new("RGB", (32, 25))
    image.save(tmp_path / "data" / "5.png")
    cfg = config(workers=workers)
    cfg.INPUT.MIN_SIZE_TEST, cfg.TEST.IMS_PER_BATCH = 30, 2
    batches = [
        [item.image_id for item in batch]
        for rank in range(world_size)
        for batch in build_test_loader(cfg, data, rank=rank, world_size=world_size)
    ]
    assert (
        batches
        == {
            1: [[1, 2], [3, 6], [4, 5], [7, 8], [9]],
            2: [[1, 5], [3, 9], [7], [2, 4], [6], [8]],
        }[world_size]
    )


def test_test_items_are_resized_and_know_the_original(tmp_path):
    data = load(make_dataset(tmp_path))
    loader = build_test_loader(config(), data)
    batches = list(loader)
    assert len(loader) == 6 and all(len(batch) == 1 for batch in batches)
    third = batches[2][0]
    assert isinstance(third, TestItem) and (third.height, third.width) == (32, 20)
    assert third.image.shape == (3, 19, 12) and third.image.dtype == torch.uint8  # 32 * 12 / 20
    assert third.file_name == str(tmp_path / "data" / "3.png")
    assert [b[0].image_id for b in loader] == [1, 2, 3, 4, 5, 6]  # a second pass too


def test_images_of_rare_classes_come_more_often(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    first, second = (make_dataset(tmp_path / name) for name in ("a", "b"))
    cfg = config(first, second)
    plain = [item.image_id for batch in take(30, cfg) for item in batch]
    cfg.DATALOADER |= {
        "SAMPLER_TRAIN": "RepeatFactorTrainingSampler",
        "REPEAT_THRESHOLD": 1.0,
        "REPEAT_SQRT": False,
    }
    loader = build_train_loader(cfg).loader
    data, factors = loader.dataset, loader.batch_sampler.factors
    images, labels = data.shown
    assert len(factors) == len(data) == 2 * len(load(first))
    for index in range(len(data)):
        record = data._read(index)[0]
        assert set(record.labels) <= set(labels[images == index])
    shares = np.bincount(labels) / len(data)
    rarest = [min(shares[labels[images == i]], default=1) for i in range(len(data))]
    assert factors == pytest.approx(1 / np.array(rarest))
    assert "DATALOADER.SAMPLER_TRAIN RepeatFactorTrainingSampler: an epoch has" in caplog.text
    repeated = [item.image_id for batch in take(30, cfg) for item in batch]
    assert repeated != plain
    resumed = [item.image_id for batch in take(10, cfg, start_iteration=20) for item in batch]
    assert resumed == repeated[80:]
