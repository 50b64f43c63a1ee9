"""``INPUT.AUGMENTATIONS`` in Detectron2's loader: items that know their place in the training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList
from detectron2.structures import BoxMode
from detectron2.utils import comm
from torch.utils.data import Dataset, Sampler

from onenet.data.augment.build import Augmentations, build_augmentations
from onenet.data.augment.item import Item
from onenet.data.unreadable import read_next

from .dataset_mapper import OneNetDatasetMapper, objects_of


class NumberedSampler(Sampler[tuple[int, int]]):
    """Another sampler's indices, each with its number in this process' part of the training.

    Args:
        sampler: endless.
        batch: images of this process in an iteration.

    Attributes:
        start: iterations that are done when iterating begins.
    """

    def __init__(self, sampler: Sampler[int], batch: int) -> None:
        self.sampler = sampler
        self.batch = batch
        self.start = 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        yield from enumerate(self.sampler, start=self.start * self.batch)


class AugmentedDataset(Dataset[dict[str, Any]]):
    """Inputs of the model by number and index, augmented; each tells the images it ``skipped``.

    All that is random depends on the seed, the number and the process alone.

    Args:
        records: Detectron2's dataset dicts.
        mapper: applied after the augmentations.
        augmentations: see there.
        batch: images of this process in an iteration.
        seed: at least 0, the same for all processes.
        skip_unreadable: replace an image that cannot be read by the next one that can.
    """

    def __init__(
        self,
        records: Sequence[dict[str, Any]],
        mapper: OneNetDatasetMapper,
        augmentations: Augmentations,
        *,
        batch: int,
        seed: int,
        skip_unreadable: bool,
    ) -> None:
        self.records = DatasetFromList(list(records), copy=False)
        self.mapper = mapper
        self.augmentations = augmentations
        self.batch = batch
        self.seed = seed, comm.get_rank()
        self.skip_unreadable = skip_unreadable

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        number, index = key
        (record, item), problems = self._readable(index)
        skipped = list(problems)

        def draw(random: np.random.Generator) -> Item:
            (_, other), problems = self._readable(int(random.integers(len(self))))
            skipped.extend(problems)
            return other

        random = np.random.default_rng((*self.seed, number, 1))
        item = self.augmentations(item, number // self.batch, random, draw)
        objects = zip(item.boxes.tolist(), item.labels.tolist(), strict=True)
        annotations = [
            {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": label}
            for box, label in objects
        ]
        state = np.random.get_state()  # which Detectron2's augmentations draw from
        np.random.seed(random.integers(2**32))
        try:
            inputs = self.mapper.map({**record, "annotations": annotations}, item.image)
        finally:
            np.random.set_state(state)
        return {**inputs, "skipped": tuple(skipped)}

    def _readable(self, index: int) -> tuple[tuple[dict[str, Any], Item], tuple[str, ...]]:
        """A record with its item, and the errors of the images that were skipped for it."""
        if self.skip_unreadable:
            return read_next(self._read, index, len(self))
        return self._read(index), ()

    def _read(self, index: int) -> tuple[dict[str, Any], Item]:
        record = self.records[index]
        image = self.mapper.read(record)
        found = objects_of(record)
        boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in found]
        labels = [a["category_id"] for a in found]
        boxes = np.array(boxes, np.float32).reshape(-1, 4)
        return record, Item.of(image, boxes, np.array(labels, np.int64))


def augmented(
    cfg: CfgNode, records: Sequence[dict[str, Any]], sampler: Sampler[int]
) -> tuple[AugmentedDataset, NumberedSampler]:
    """The data set of a training with ``INPUT.AUGMENTATIONS``, and what gives its keys.

    Raises:
        ConfigError: see :func:`build_augmentations`.
    """
    augmentations = build_augmentations(cfg)
    rest = cfg.clone()
    rest.defrost()
    rest.INPUT.RANDOM_FLIP, rest.INPUT.CROP.ENABLED = augmentations.rest(cfg)
    rest.INPUT.AUGMENTATIONS = []
    batch = cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size()
    dataset = AugmentedDataset(
        records,
        OneNetDatasetMapper(rest, is_train=True),
        augmentations,
        batch=batch,
        seed=cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed(),
        skip_unreadable=cfg.DATALOADER.SKIP_UNREADABLE,
    )
    return dataset, NumberedSampler(sampler, batch)
