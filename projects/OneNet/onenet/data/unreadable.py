"""``DATALOADER.SKIP_UNREADABLE``: training skips images that cannot be read and reports them."""

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
    """Read an image or, if it cannot be read, the next one of the data set that can.

    The choice is deterministic. The first image follows the last.

    Args:
        read: returns the item at an index, or raises ``UnreadableImageError``.
        index: the item to read.
        size: number of images in the data set.

    Returns:
        The item, and the error message of each skipped image.

    Raises:
        DatasetError: no image can be read.
    """
    skipped: list[str] = []
    for step in range(size):
        try:
            return read((index + step) % size), tuple(skipped)
        except UnreadableImageError as error:
            skipped.append(str(error))
    raise DatasetError(f"None of the {size} training images can be read. {skipped[0]}")


class SkippedImages:
    """The images that a training run has skipped.

    Attributes:
        times: how often this process skipped an image, by the image's error message.
    """

    def __init__(self) -> None:
        self.times: Counter[str] = Counter()

    def watch(
        self, batches: Iterable[list[Any]], skipped_of: Callable[[Any], Iterable[str]]
    ) -> Iterator[list[Any]]:
        """Yield the batches unchanged; log a warning the first time an image is skipped.

        Args:
            skipped_of: returns the error messages that :func:`read_next` gave for an item.
        """
        for batch in batches:
            for item in batch:
                for problem in skipped_of(item):
                    if problem not in self.times:
                        logger.warning("Skipped: %s", problem)
                    self.times[problem] += 1
            yield batch

    def report(self) -> None:
        """Log the skipped images of all processes, in the first one; call it in all of them."""
        times, rank = self.times, 0
        if dist.is_available() and dist.is_initialized():
            shares: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(shares, times)
            times, rank = sum(shares, Counter()), dist.get_rank()
        if times and rank == 0:
            lines = "".join(f"\n  {count} x {text}" for text, count in sorted(times.items()))
            logger.warning(
                "DATALOADER.SKIP_UNREADABLE: %d images were skipped since this start, %d times in "
                "total:%s",
                len(times),
                times.total(),
                lines,
            )
