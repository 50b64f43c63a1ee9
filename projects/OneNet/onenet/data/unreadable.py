"""``DATALOADER.SKIP_UNREADABLE``: training images that cannot be read, passed over but told."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch.distributed as dist

from onenet.errors import DatasetError, UnreadableImageError

logger = logging.getLogger(__name__)
Item = TypeVar("Item")


def read_next(read: Callable[[int], Item], index: int, size: int) -> tuple[Item, tuple[str, ...]]:
    """Read an image, or the next of the data set that can be read: the same one every time.

    Args:
        read: gives the image at an index, or raises ``UnreadableImageError``.
        size: images of the data set, of which the first follows the last.

    Returns:
        What was read, and of each image that could not be, what is wrong with it.

    Raises:
        DatasetError: no image can be read.
    """
    skipped: list[str] = []
    for step in range(size):
        try:
            return read((index + step) % size), tuple(skipped)
        except UnreadableImageError as error:
            skipped.append(str(error))
    raise DatasetError(f"Not one of {size} training images can be read. {skipped[0]}")


class SkippedImages:
    """The images that a training has passed over.

    Attributes:
        times: how often, by what is wrong with each; of this process.
    """

    def __init__(self) -> None:
        self.times: Counter[str] = Counter()

    def watch(
        self, batches: Iterable[list[Any]], skipped_of: Callable[[Any], Iterable[str]]
    ) -> Iterator[list[Any]]:
        """The batches as they are; a warning for each image when it is first passed over.

        Args:
            skipped_of: gives what :func:`read_next` said for an item.
        """
        for batch in batches:
            for item in batch:
                for problem in skipped_of(item):
                    if problem not in self.times:
                        logger.warning("Passed over: %s", problem)
                    self.times[problem] += 1
            yield batch

    def report(self) -> None:
        """The first process lists the images of all, which must call this together, in its log."""
        times, rank = self.times, 0
        if dist.is_available() and dist.is_initialized():
            shares: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(shares, times)
            times, rank = sum(shares, Counter()), dist.get_rank()
        if times and rank == 0:
            lines = "".join(f"\n  {count} x {text}" for text, count in sorted(times.items()))
            logger.warning(
                "DATALOADER.SKIP_UNREADABLE: %d images were passed over since this start, %d times "
                "in all:%s",
                len(times),
                times.total(),
                lines,
            )
