"""What loaders read: the images of a training, and those of a test set."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from onenet.data.augment.build import Augmentations
from onenet.data.augment.item import Item
from onenet.data.batching import resized_shape
from onenet.data.dataset import CocoDetection, ImageRecord
from onenet.data.sources import check_same_classes
from onenet.data.transforms import TestTransform, TrainTransform, scale_boxes
from onenet.data.unreadable import read_next
from onenet.errors import DatasetError
from onenet.structures import Targets

from .items import TestItem, TrainItem
from .sampler import Place

logger = logging.getLogger(__name__)


class TrainDataset(Dataset[TrainItem]):
    """The images of all training sets in a row, with augmentations and random transforms.

    These depend on the seed and the item's place alone, not on the worker or process that loads it.

    Args:
        datasets: at least one; their class names must agree.
        transform: applied to every image.
        image_format: "RGB" or "BGR".
        seed: at least 0.
        augmentations: applied before ``transform``.
        skip_unreadable: replace an image that cannot be read by the next one that can.

    Raises:
        DatasetError: there is no data set, or their classes differ.
    """

    def __init__(
        self,
        datasets: Sequence[CocoDetection],
        transform: TrainTransform,
        *,
        image_format: str,
        seed: int,
        augmentations: Augmentations | None = None,
        skip_unreadable: bool = False,
    ) -> None:
        if not datasets:
            raise DatasetError("DATASETS.TRAIN is empty; name at least one data set.")
        check_same_classes((d.source.json_file, d.class_names) for d in datasets)
        self.datasets = list(datasets)
        self.transform = transform
        self.image_format = image_format
        self.seed = seed
        self.augmentations = augmentations
        self.skip_unreadable = skip_unreadable
        self._ends = np.cumsum([len(d) for d in datasets])

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def wide(self) -> np.ndarray:
        """(len,) bool: which images are wider than high."""
        sizes = np.concatenate([d.sizes for d in self.datasets])
        return sizes[:, 1] > sizes[:, 0]

    @property
    def shown(self) -> np.ndarray:
        """(2, P) int64: :attr:`CocoDetection.shown` of all images."""
        starts = [0, *self._ends[:-1]]
        parts = zip(self.datasets, starts, strict=True)
        return np.concatenate([d.shown + [[start], [0]] for d, start in parts], axis=1)

    def __getitem__(self, place: Place) -> TrainItem:
        (record, image), skipped = self._readable(place.index)
        boxes, labels = record.boxes, record.labels
        if self.augmentations:
            item, more = self._augmented(place, Item.of(image, boxes, labels))
            image, boxes, labels = item.image, item.boxes.numpy(), item.labels.numpy()
            skipped += more
        if self.image_format == "BGR":
            image = image[:, :, ::-1]
        rng = np.random.default_rng((self.seed, place.position))
        image, boxes, labels = self.transform(image, boxes, labels, rng)
        targets = Targets(torch.from_numpy(boxes), torch.from_numpy(labels), image.shape[:2])
        return TrainItem(_to_tensor(image), targets, record.image_id, record.file_name, skipped)

    def _augmented(self, place: Place, item: Item) -> tuple[Item, tuple[str, ...]]:
        """The augmented item, and the errors of images that were skipped for those it draws."""
        skipped: list[str] = []

        def draw(random: np.random.Generator) -> Item:
            (record, image), problems = self._readable(int(random.integers(len(self))))
            skipped.extend(problems)
            return Item.of(image, record.boxes, record.labels)

        # A stream of its own: the transforms draw what they draw without augmentations.
        random = np.random.default_rng((self.seed, place.position, 1))
        return self.augmentations(item, place.iteration, random, draw), tuple(skipped)

    def _readable(self, index: int) -> tuple[tuple[ImageRecord, np.ndarray], tuple[str, ...]]:
        """An image in RGB, and the errors of those that were skipped for it."""
        if self.skip_unreadable:
            return read_next(self._read, index, len(self))
        return self._read(index), ()

    def _read(self, index: int) -> tuple[ImageRecord, np.ndarray]:
        part = int(np.searchsorted(self._ends, index, side="right"))
        start = int(self._ends[part - 1]) if part else 0
        dataset = self.datasets[part]
        record = dataset.record(index - start)
        return record, dataset.read_image(record)


class TestDataset(Dataset[TestItem]):
    """The images of one data set, resized for testing."""

    __test__ = False  # not a test case; pytest goes by the name

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

    def __getitem__(self, index: int) -> TestItem:
        r = self.dataset.record(index)
        image = self.transform(self.dataset.read_image(r, self.image_format))
        return TestItem(_to_tensor(image), r.image_id, r.file_name, r.height, r.width)


class LossDataset(TestDataset):
    """The images of a test set with their objects, to compute losses on."""

    @classmethod
    def of(cls, cfg: Any, dataset: CocoDetection) -> LossDataset:
        """The images of ``dataset`` as ``INPUT`` sets them for testing."""
        return cls(dataset, build_test_transform(cfg), image_format=cfg.INPUT.FORMAT)

    def __getitem__(self, index: int) -> TrainItem:
        item, record = super().__getitem__(index), self.dataset.record(index)
        size = tuple(item.image.shape[-2:])
        boxes, labels = scale_boxes(
            record.boxes, record.labels, (record.height, record.width), size
        )
        targets = Targets(torch.from_numpy(boxes), torch.from_numpy(labels), size)
        return TrainItem(item.image, targets, item.image_id, item.file_name)


def _to_tensor(image: np.ndarray) -> Tensor:
    # Always a copy: Pillow's pixels are read-only.
    return torch.from_numpy(image.transpose(2, 0, 1).copy())


def build_test_transform(cfg: Any) -> TestTransform:
    """The resizing that INPUT sets for testing."""
    return TestTransform(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
