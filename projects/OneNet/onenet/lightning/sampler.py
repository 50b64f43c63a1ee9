"""The order in which training sees its images."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np
import torch
from torch.utils.data import Sampler


class InfiniteBatchSampler(Sampler[list[tuple[int, int]]]):
    """Endless batches of (position in the stream, image index), for one of several processes.

    The stream is an endless row of random orders of all images; its positions are 0, 1, 2, …
    Every process cuts the same stream into the same global batches and takes its stride of each,
    so a batch's images do not depend on the number of processes. If images are grouped by aspect
    ratio, positions wait in one of two buckets until it holds a batch.

    Args:
        size: number of images.
        batch_size: images of a global batch.
        seed: of the random orders, at least 0.
        wide: (size,) bool to group images by, or None for consecutive batches.
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
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.wide = wide
        self.rank = rank
        self.world_size = world_size
        self.start_iteration = start_iteration

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in islice(self._global_batches(), self.start_iteration, None):
            yield batch[self.rank :: self.world_size]

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
        epoch = 0
        while True:
            state = np.random.SeedSequence((self.seed, epoch)).generate_state(1, np.uint64)
            generator.manual_seed(int(state[0]))
            yield from torch.randperm(self.size, generator=generator).tolist()
            epoch += 1
