"""Loaders: an endless, resumable stream of training batches, and the images to test on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from onenet.data.batching import group_by_shape, resized_shape
from onenet.data.dataset import CocoDetection, ImageRecord
from onenet.data.images import check_image_size, read_image
from onenet.data.sources import find_dataset
from onenet.data.transforms import TestTransform, TrainTransform
from onenet.data.unreadable import read_next
from onenet.errors import DatasetError
from onenet.inference.batch_size import images_per_batch
from onenet.structures import Targets
from onenet.training.signals import leave_signals_to_the_first

from .sampler import InfiniteBatchSampler
from .samples import TestSample, TrainSample


class TrainDataset(Dataset[TrainSample]):
    """The images of several data sets, one after the other, with random transforms.

    An item is asked for by its position in the training stream and the image's index: what
    chance does to the image depends on the seed and the position alone, not on the worker or
    the process that loads it.

    Args:
        datasets: at least one; their class names must agree.
        transform: applied to every image.
        image_format: "RGB" or "BGR".
        seed: at least 0.
        skip_unreadable: in place of an image that cannot be read, give the next that can.

    Raises:
        DatasetError: no data set, or different classes.
    """

    def __init__(
        self,
        datasets: Sequence[CocoDetection],
        transform: TrainTransform,
        *,
        image_format: str,
        seed: int,
        skip_unreadable: bool = False,
    ) -> None:
        if not datasets:
            raise DatasetError("DATASETS.TRAIN is empty; name at least one data set.")
        for other in datasets[1:]:
            if other.class_names != datasets[0].class_names:
                raise DatasetError(
                    f"The data sets of DATASETS.TRAIN must have the same classes: "
                    f"{datasets[0].source.json_file} has {datasets[0].class_names}, "
                    f"{other.source.json_file} has {other.class_names}."
                )
        self.datasets = list(datasets)
        self.transform = transform
        self.image_format = image_format
        self.seed = seed
        self.skip_unreadable = skip_unreadable
        self._ends = np.cumsum([len(d) for d in datasets])

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def wide(self) -> np.ndarray:
        """(len,) bool: which images are wider than high."""
        sizes = np.concatenate([d.sizes for d in self.datasets])
        return sizes[:, 1] > sizes[:, 0]

    def __getitem__(self, key: tuple[int, int]) -> TrainSample:
        position, index = key
        if self.skip_unreadable:
            (record, image), skipped = read_next(self._read, index, len(self))
        else:
            (record, image), skipped = self._read(index), ()
        rng = np.random.default_rng((self.seed, position))
        image, boxes, labels = self.transform(image, record.boxes, record.labels, rng)
        targets = Targets(torch.from_numpy(boxes), torch.from_numpy(labels), image.shape[:2])
        return TrainSample(_to_tensor(image), targets, record.image_id, record.file_name, skipped)

    def _read(self, index: int) -> tuple[ImageRecord, np.ndarray]:
        part = int(np.searchsorted(self._ends, index, side="right"))
        start = int(self._ends[part - 1]) if part else 0
        dataset = self.datasets[part]
        record = dataset.record(index - start)
        return record, _read(record, dataset, self.image_format)


class TestDataset(Dataset[TestSample]):
    """The images of one data set, resized for testing."""

    __test__ = False  # no test case, whatever pytest makes of the name

    def __init__(
        self, dataset: CocoDetection, transform: TestTransform, *, image_format: str
    ) -> None:
        self.dataset = dataset
        self.transform = transform
        self.image_format = image_format

    def __len__(self) -> int:
        return len(self.dataset)

    def shape(self, index: int) -> tuple[int, int]:
        """(h, w) px of a resized image, without reading it."""
        height, width = self.dataset.sizes[index].tolist()
        return resized_shape(height, width, self.transform.min_size, self.transform.max_size)

    def __getitem__(self, index: int) -> TestSample:
        r = self.dataset.record(index)
        image = self.transform(_read(r, self.dataset, self.image_format))
        return TestSample(_to_tensor(image), r.image_id, r.file_name, r.height, r.width)


def _read(r: ImageRecord, dataset: CocoDetection, image_format: str) -> np.ndarray:
    image = read_image(r.file_name, image_format)
    check_image_size(r.file_name, image, r.height, r.width, dataset.source.json_file, r.image_id)
    return image


def _to_tensor(image: np.ndarray) -> Tensor:
    # A copy even where none is needed for the order: Pillow's pixels are read-only.
    return torch.from_numpy(image.transpose(2, 0, 1).copy())


def build_train_loader(
    cfg: Any,
    datasets: Sequence[CocoDetection] | None = None,
    *,
    rank: int = 0,
    world_size: int = 1,
    start_iteration: int = 0,
) -> DataLoader[list[TrainSample]]:
    """An endless loader of this process' share of every batch, as ``list[TrainSample]``.

    Args:
        cfg: reads DATASETS.TRAIN, DATALOADER, SOLVER.IMS_PER_BATCH (images of all processes
            together), INPUT, SEED (at least 0), MODEL.DEVICE and MODEL.OneNet.NUM_CLASSES.
        datasets: in place of those that DATASETS.TRAIN names.
        rank, world_size: this process and how many there are.
        start_iteration: iterations that an interrupted run has finished.

    Raises:
        DatasetError: of the data, here or, for single images, while iterating.
        ValueError: a batch that the processes cannot share evenly, or a bad INPUT value.
    """
    if datasets is None:
        keep_empty = not cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
        datasets = [
            CocoDetection(find_dataset(name), keep_empty=keep_empty) for name in cfg.DATASETS.TRAIN
        ]
    for dataset in datasets:
        dataset.check_num_classes(cfg.MODEL.OneNet.NUM_CLASSES)
    crop = cfg.INPUT.CROP
    transform = TrainTransform(
        min_sizes=cfg.INPUT.MIN_SIZE_TRAIN,
        max_size=cfg.INPUT.MAX_SIZE_TRAIN,
        sampling=cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING,
        flip=cfg.INPUT.RANDOM_FLIP,
        crop=(crop.TYPE, crop.SIZE) if crop.ENABLED else None,
    )
    data = TrainDataset(
        datasets,
        transform,
        image_format=cfg.INPUT.FORMAT,
        seed=cfg.SEED,
        skip_unreadable=cfg.DATALOADER.SKIP_UNREADABLE,
    )
    sampler = InfiniteBatchSampler(
        len(data),
        cfg.SOLVER.IMS_PER_BATCH,
        seed=cfg.SEED,
        wide=data.wide if cfg.DATALOADER.ASPECT_RATIO_GROUPING else None,
        rank=rank,
        world_size=world_size,
        start_iteration=start_iteration,
    )
    workers = cfg.DATALOADER.NUM_WORKERS
    return DataLoader(
        data,
        batch_sampler=sampler,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=list,
        pin_memory=_on_cuda(cfg),
        worker_init_fn=leave_signals_to_the_first,
    )


def _on_cuda(cfg: Any) -> bool:
    return torch.cuda.is_available() and cfg.MODEL.DEVICE != "cpu"


def build_test_transform(cfg: Any) -> TestTransform:
    """The resizing that INPUT asks for in testing."""
    return TestTransform(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)


def build_test_loader(
    cfg: Any, dataset: CocoDetection, *, rank: int = 0, world_size: int = 1
) -> DataLoader[list[TestSample]]:
    """A loader of this process' images of ``dataset``, as ``list[TestSample]``.

    Images come together whose sizes, padded for the network, are the same; in the order of the
    data set but for that.

    Args:
        cfg: reads INPUT, DATALOADER.NUM_WORKERS, TEST.IMS_PER_BATCH, the most images of a batch,
            MODEL.DEVICE and MODEL.OneNet.NUM_CLASSES.
        dataset: all of its images are tested on.
        rank, world_size: this process takes the images rank, rank + world_size, …

    Raises:
        DatasetError: wrong number of classes; an unreadable image, while iterating.
    """
    dataset.check_num_classes(cfg.MODEL.OneNet.NUM_CLASSES)
    data = TestDataset(dataset, build_test_transform(cfg), image_format=cfg.INPUT.FORMAT)
    share = range(rank, len(data), world_size)
    shapes = [data.shape(index) for index in share]
    groups = group_by_shape(shapes, images_per_batch(cfg))
    return DataLoader(
        data,
        batch_sampler=[[share[i] for i in group] for group in groups],
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=list,
        pin_memory=_on_cuda(cfg),
        worker_init_fn=leave_signals_to_the_first,
    )
