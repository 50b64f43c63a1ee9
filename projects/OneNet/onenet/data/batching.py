"""Grouping images by padded shape, so that a batch pads no image more than it would be alone."""

from __future__ import annotations

from collections.abc import Iterable

from .images import shortest_edge_size

# Padded heights and widths are multiples of this many px: the largest stride of the paper's
# backbones.
DIVISIBILITY = 32


def pad_to(size: int, divisor: int) -> int:
    """The smallest multiple of ``divisor`` that is at least ``size``."""
    return -(-size // divisor) * divisor


def resized_shape(height: int, width: int, short: int, max_size: int) -> tuple[int, int]:
    """(h, w) px of an image after :func:`~onenet.data.images.resize_shortest_edge`."""
    return (height, width) if short == 0 else shortest_edge_size(height, width, short, max_size)


def group_by_shape(
    sizes: Iterable[tuple[int, int]], limit: int | None = None, divisor: int = DIVISIBILITY
) -> list[list[int]]:
    """Group the indices of images that have the same size once padded.

    Args:
        sizes: (H, W) px of the images.
        limit: largest number of images in a group; None: no limit.
        divisor: px; padded sides are multiples of it.

    Returns:
        Groups of indices, ordered by their first image; every index is in exactly one group.
    """
    groups: list[list[int]] = []
    open_groups: dict[tuple[int, int], list[int]] = {}
    for index, (height, width) in enumerate(sizes):
        shape = pad_to(height, divisor), pad_to(width, divisor)
        group = open_groups.get(shape)
        if group is None or len(group) == limit:
            group = open_groups[shape] = []
            groups.append(group)
        group.append(index)
    return groups
