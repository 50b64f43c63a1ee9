"""Detectron2's loaders: training can skip unreadable images, testing batches equal shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from detectron2.data import (
    DatasetFromList,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.build import _train_loader_from_config
from detectron2.data.samplers import InferenceSampler
from detectron2.structures import BoxMode
from torch import Tensor
from torch.utils.data import DataLoader

from onenet.data.batching import group_by_shape, resized_shape
from onenet.data.transforms import scale_boxes
from onenet.data.unreadable import SkippedImages, read_next
from onenet.inference.batch_size import images_per_batch
from onenet.structures import Targets
from onenet.training.workers import Watched, init_worker

from .augment import NumberedSampler, augmented
from .dataset_mapper import OneNetDatasetMapper, objects_of


def build_train_loader(cfg: Any) -> Any:
    """Detectron2's loader with OneNet's mapper.

    A :class:`SkippingLoader` if the config asks to skip images, or for augmentations.
    """
    if cfg.INPUT.AUGMENTATIONS:
        return _augmented_loader(cfg)
    mapper = OneNetDatasetMapper(cfg, is_train=True)
    if not cfg.DATALOADER.SKIP_UNREADABLE:
        return _ready(build_detection_train_loader(cfg, mapper=mapper), cfg)
    records = get_detection_dataset_dicts(
        cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    )
    records = [{**record, "index": index} for index, record in enumerate(records)]
    skipping = _SkippingMapper(records, mapper)
    loader = build_detection_train_loader(cfg, dataset=records, mapper=skipping)
    return SkippingLoader(_ready(loader, cfg))


def _augmented_loader(cfg: Any) -> AugmentedLoader:
    records = get_detection_dataset_dicts(
        cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    )
    options = _train_loader_from_config(cfg, mapper=dict, dataset=records)
    dataset, sampler = augmented(cfg, records, options["sampler"])
    options |= {"dataset": dataset, "mapper": None, "sampler": sampler}
    return AugmentedLoader(_ready(build_detection_train_loader(**options), cfg), sampler)


def _ready(loader: Any, cfg: Any) -> Any:
    """Watch the processes of Detectron2's loader; they leave signals to the main process.

    For CUDA, images lie in page-locked memory, from where they are sent without a wait.
    """
    inner = loader if isinstance(loader, DataLoader) else loader.dataset
    inner.worker_init_fn = partial(_init_worker, inner.worker_init_fn)
    inner.pin_memory = torch.cuda.is_available() and cfg.MODEL.DEVICE != "cpu"
    if inner is loader:
        return Watched(inner)
    loader.dataset = Watched(inner)
    return loader


def _init_worker(also: Callable[[int], None] | None, worker: int) -> None:
    init_worker()
    if also is not None:
        also(worker)


class SkippingLoader:
    """A loader that counts in ``skipped`` the images that cannot be read."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self.skipped = SkippedImages()

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        return self.skipped.watch(self.loader, lambda inputs: inputs["skipped"])


class AugmentedLoader(SkippingLoader):
    """The loader of a training with ``INPUT.AUGMENTATIONS``.

    Args:
        sampler: tells the items their numbers.
    """

    def __init__(self, loader: Any, sampler: NumberedSampler) -> None:
        super().__init__(loader)
        self._sampler = sampler

    def start_at(self, iteration: int) -> None:
        """Go on after so many iterations; called before iterating."""
        self._sampler.start = iteration


class _SkippingMapper:
    """Inputs of the model, each with the errors of the images it replaces as ``skipped``."""

    def __init__(self, records: list[dict[str, Any]], mapper: OneNetDatasetMapper) -> None:
        self.records = DatasetFromList(records, copy=False)
        self.mapper = mapper

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        inputs, skipped = read_next(self._read, record["index"], len(self.records))
        return {**inputs, "skipped": skipped}

    def _read(self, index: int) -> dict[str, Any]:
        return self.mapper(self.records[index])


def build_test_loader(cfg: Any, dataset_name: str) -> Any:
    """This process' share of a data set, ``TEST.IMS_PER_BATCH`` images at a time.

    Images of one padded size follow each other; the model splits a batch of several sizes.
    """
    records = get_detection_dataset_dicts(dataset_name, filter_empty=False)
    share = list(InferenceSampler(len(records)))
    sizes = ((records[i]["height"], records[i]["width"]) for i in share)
    limits = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    groups = group_by_shape(resized_shape(*size, *limits) for size in sizes)
    loader = build_detection_test_loader(
        records,
        mapper=OneNetDatasetMapper(cfg, is_train=False),
        sampler=[share[i] for group in groups for i in group],
        batch_size=images_per_batch(cfg),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )
    return _ready(loader, cfg)


class LossMapper:
    """An image of a test set as :func:`build_test_loader` gives it, and its objects."""

    def __init__(self, cfg: Any) -> None:
        self.mapper = OneNetDatasetMapper(cfg, is_train=False)

    def __call__(self, record: dict[str, Any]) -> tuple[Tensor, Targets]:
        image = self.mapper(record)["image"]
        objects = objects_of(record)
        boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in objects]
        size = tuple(image.shape[-2:])
        found, labels = scale_boxes(
            np.array(boxes, dtype=np.float64).reshape(-1, 4),
            np.array([a["category_id"] for a in objects], dtype=np.int64),
            (record["height"], record["width"]),
            size,
        )
        return image, Targets(torch.from_numpy(found), torch.from_numpy(labels), size)


def build_loss_loader(cfg: Any, dataset_name: str) -> Any:
    """This process' share of a data set, one image with its targets at a time, in a list."""
    loader = build_detection_test_loader(
        get_detection_dataset_dicts(dataset_name, filter_empty=False),
        mapper=LossMapper(cfg),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )
    return _ready(loader, cfg)
