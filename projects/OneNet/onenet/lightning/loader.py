"""Loaders: an endless, resumable stream of training batches, and the images of a test set."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.utils.data import DataLoader

from onenet.config.device import device_of
from onenet.data.augment.build import build_augmentations
from onenet.data.batching import group_by_shape
from onenet.data.dataset import CocoDetection
from onenet.data.sources import find_dataset
from onenet.data.transforms import TrainTransform
from onenet.inference.batch_size import images_per_batch
from onenet.training.workers import Watched, init_worker

from .datasets import LossDataset, TestDataset, TrainDataset, build_test_transform
from .sampler import InfiniteBatchSampler, repeat_factors

logger = logging.getLogger(__name__)


def build_train_loader(
    cfg: Any,
    datasets: Sequence[CocoDetection] | None = None,
    *,
    rank: int = 0,
    world_size: int = 1,
    start_iteration: int = 0,
) -> Watched:
    """An endless loader of this process' share of every batch, as ``list[TrainItem]``.

    Args:
        cfg: reads DATASETS.TRAIN, DATALOADER, SOLVER.IMS_PER_BATCH (images of all processes
            together), SOLVER.MAX_ITER, INPUT, SEED (at least 0), MODEL.DEVICE and
            MODEL.OneNet.NUM_CLASSES.
        datasets: in place of those that DATASETS.TRAIN names.
        rank, world_size: this process and how many there are.
        start_iteration: iterations that an interrupted run has finished.

    Raises:
        DatasetError: the data is wrong; for single images, raised while iterating.
        DataWorkerError: while iterating, a process that loads data fails.
        ConfigError: see :func:`build_augmentations`.
        ValueError: the processes cannot share a batch evenly, or an INPUT value is wrong.
    """
    if datasets is None:
        keep_empty = not cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
        datasets = [
            CocoDetection(find_dataset(name), keep_empty=keep_empty) for name in cfg.DATASETS.TRAIN
        ]
    for dataset in datasets:
        dataset.check_num_classes(cfg.MODEL.OneNet.NUM_CLASSES)
    augmentations = build_augmentations(cfg)
    flip, crops = augmentations.rest(cfg)
    transform = TrainTransform(
        min_sizes=cfg.INPUT.MIN_SIZE_TRAIN,
        max_size=cfg.INPUT.MAX_SIZE_TRAIN,
        sampling=cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING,
        flip=flip,
        crop=(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE) if crops else None,
    )
    data = TrainDataset(
        datasets,
        transform,
        image_format=cfg.INPUT.FORMAT,
        seed=cfg.SEED,
        augmentations=augmentations,
        skip_unreadable=cfg.DATALOADER.SKIP_UNREADABLE,
    )
    sampler = InfiniteBatchSampler(
        len(data),
        cfg.SOLVER.IMS_PER_BATCH,
        seed=cfg.SEED,
        wide=data.wide if cfg.DATALOADER.ASPECT_RATIO_GROUPING else None,
        factors=_repeat_factors(cfg, data),
        rank=rank,
        world_size=world_size,
        start_iteration=start_iteration,
    )
    workers = cfg.DATALOADER.NUM_WORKERS
    return Watched(
        DataLoader(
            data,
            batch_sampler=sampler,
            num_workers=workers,
            persistent_workers=workers > 0,
            collate_fn=list,
            pin_memory=_on_cuda(cfg),
            worker_init_fn=init_worker,
        )
    )


def _repeat_factors(cfg: Any, data: TrainDataset) -> np.ndarray | None:
    """What ``DATALOADER.SAMPLER_TRAIN`` and the keys of repeating say."""
    c = cfg.DATALOADER
    if c.SAMPLER_TRAIN == "TrainingSampler":
        return None
    options = {"threshold": c.REPEAT_THRESHOLD, "root": c.REPEAT_SQRT}
    factors = repeat_factors(len(data), *data.shown, **options)
    logger.info(
        "DATALOADER.SAMPLER_TRAIN %s: an epoch has %.1f images on average, %d of %d repeated "
        "(REPEAT_THRESHOLD %g)",
        c.SAMPLER_TRAIN,
        factors.sum(dtype=np.float64),
        (factors > 1).sum(),
        len(data),
        c.REPEAT_THRESHOLD,
    )
    return factors


def _on_cuda(cfg: Any) -> bool:
    return device_of(cfg).type == "cuda"


def build_test_loader(
    cfg: Any, dataset: CocoDetection, *, rank: int = 0, world_size: int = 1
) -> Watched:
    """A loader of this process' images of ``dataset``, as ``list[TestItem]``.

    Images of one padded size share batches; otherwise the order is that of the data set.

    Args:
        cfg: reads INPUT, DATALOADER.NUM_WORKERS, TEST.IMS_PER_BATCH, the most images of a batch,
            MODEL.DEVICE and MODEL.OneNet.NUM_CLASSES.
        dataset: all of its images are tested on.
        rank, world_size: this process takes the images rank, rank + world_size, …

    Raises:
        DatasetError: the number of classes is wrong; while iterating, an image is unreadable.
        DataWorkerError: while iterating, a process that loads data fails.
    """
    dataset.check_num_classes(cfg.MODEL.OneNet.NUM_CLASSES)
    data = TestDataset(dataset, build_test_transform(cfg), image_format=cfg.INPUT.FORMAT)
    share = range(rank, len(data), world_size)
    shapes = [data.shape(index) for index in share]
    groups = group_by_shape(shapes, images_per_batch(cfg))
    return Watched(
        DataLoader(
            data,
            batch_sampler=[[share[i] for i in group] for group in groups],
            num_workers=cfg.DATALOADER.NUM_WORKERS,
            collate_fn=list,
            pin_memory=_on_cuda(cfg),
            worker_init_fn=init_worker,
        )
    )


def build_loss_loader(
    cfg: Any, dataset: CocoDetection, *, rank: int = 0, world_size: int = 1
) -> Watched:
    """Like :func:`build_test_loader`, but every batch is one image, as ``list[TrainItem]``."""
    data = LossDataset.of(cfg, dataset)
    return Watched(
        DataLoader(
            data,
            batch_sampler=[[index] for index in range(rank, len(data), world_size)],
            num_workers=cfg.DATALOADER.NUM_WORKERS,
            collate_fn=list,
            pin_memory=_on_cuda(cfg),
            worker_init_fn=init_worker,
        )
    )
