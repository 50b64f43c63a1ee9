"""The order in which training sees its images, and how often."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Sampler


class Place(NamedTuple):
    """Where training sees an image; the key of an item.

    Attributes:
        position: in the stream of images, which no other item has.
        index: of the image.
        iteration: that trains on it, counted from 0.
    """

    position: int
    index: int
    iteration: int


class InfiniteBatchSampler(Sampler[list[Place]]):
    """Endless batches of :class:`Place`, for one of several processes.

    The stream is an endless row of epochs, each a random order of all images; its positions are
    0, 1, 2, … With factors, an epoch holds an image so many times, a fraction rounded up or down at
    random in every epoch: 2.3 is three times in 30 % of the epochs, and else twice.
    Every process cuts the same stream into the same global batches and takes its stride of each,
    so a batch's images do not depend on the number of processes. If images are grouped by aspect
    ratio, positions wait in one of two buckets until it holds a batch.

    Args:
        size: number of images.
        batch_size: images of a global batch.
        seed: of the random orders and the rounding, at least 0.
        wide: (size,) bool to group images by, or None for consecutive batches.
        factors: (size,) of at least 1, see :func:`repeat_factors`; None: every image once.
        rank, world_size: number of this process, and how many there are.
        start_iteration: global batches to skip; the others are those of an uninterrupted run.

    Raises:
        ValueError: there are no images, or the processes cannot share a batch evenly.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        seed: int,
        wide: np.ndarray | None = None,
        factors: np.ndarray | None = None,
        rank: int = 0,
        world_size: int = 1,
        start_iteration: int = 0,
    ) -> None:
        if size < 1:
            raise ValueError(f"there are {size} images to draw from; expected at least 1")
        if batch_size < 1 or batch_size % world_size:
            raise ValueError(
                f"SOLVER.IMS_PER_BATCH must be a multiple of the number of processes, "
                f"got {batch_size} images for {world_size} processes"
            )
        if wide is not None and len(wide) != size:
            raise ValueError(f"wide must hold {size} values, one for each image, got {len(wide)}")
        if factors is not None and (len(factors) != size or (factors < 1).any()):
            raise ValueError(f"factors must hold {size} values of at least 1, one for each image")
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.wide = wide
        self.factors = factors
        self.rank = rank
        self.world_size = world_size
        self.start_iteration = start_iteration

    def __iter__(self) -> Iterator[list[Place]]:
        batches = enumerate(self._global_batches())
        for iteration, batch in islice(batches, self.start_iteration, None):
            yield [Place(*one, iteration) for one in batch[self.rank :: self.world_size]]

    def _global_batches(self) -> Iterator[list[tuple[int, int]]]:
        group = [False] * self.size if self.wide is None else self.wide.tolist()
        buckets: tuple[list, list] = ([], [])
        for position, index in enumerate(self._stream()):
            bucket = buckets[group[index]]
            bucket.append((position, index))
            if len(bucket) == self.batch_size:
                yield bucket[:]
                bucket.clear()

    def _stream(self) -> Iterator[int]:
        generator = torch.Generator()
        for epoch in count():
            state = np.random.SeedSequence((self.seed, epoch)).generate_state(1, np.uint64)
            generator.manual_seed(int(state[0]))
            images = self._images_of(epoch)
            order = torch.randperm(len(images), generator=generator).numpy()
            yield from images[order].tolist()

    def _images_of(self, epoch: int) -> np.ndarray:
        """Indices of the images of an epoch, in order."""
        every = np.arange(self.size)
        if self.factors is None:
            return every
        whole = np.floor(self.factors)
        drawn = np.random.default_rng((self.seed, epoch)).random(self.size)
        return np.repeat(every, (whole + (drawn < self.factors - whole)).astype(np.int64))


def repeat_factors(
    size: int, images: np.ndarray, labels: np.ndarray, *, threshold: float, root: bool
) -> np.ndarray:
    """How many times an epoch holds each image, so that rare classes are seen more often.

    The factor of a class is ``threshold`` divided by the share of images that show it, or the
    square root of that, and at least 1; an image has that of its rarest class. From LVIS
    (arXiv 1908.03195, appendix B.2), as in Detectron2's ``RepeatFactorTrainingSampler``.

    Args:
        size: number of images.
        images, labels: (P,) int64, the pairs of an image and a class that it shows, each once.
        threshold: ``DATALOADER.REPEAT_THRESHOLD``.
        root: ``DATALOADER.REPEAT_SQRT``.

    Returns:
        (size,) float32, at least 1.
    """
    factors = np.ones(size)
    if len(labels):
        shares = np.bincount(labels) / size
        with np.errstate(divide="ignore"):  # of classes that no image shows
            ratios = threshold / shares
        of_classes = np.sqrt(ratios) if root else ratios
        np.maximum.at(factors, images, of_classes[labels])
    return factors.astype(np.float32)
