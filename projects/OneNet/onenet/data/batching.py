"""Images of like shape put together, so that none is padded further than alone."""

from __future__ import annotations

from collections.abc import Iterable

from .images import shortest_edge_size

# px of which heights and widths are multiples: the largest stride of the paper's backbones.
DIVISIBILITY = 32


def pad_to(size: int, divisor: int) -> int:
    """The next multiple of ``divisor`` from ``size`` on."""
    return -(-size // divisor) * divisor


def resized_shape(height: int, width: int, short: int, max_size: int) -> tuple[int, int]:
    """(h, w) px of what :func:`~onenet.data.images.resize_shortest_edge` makes of an image."""
    return (height, width) if short == 0 else shortest_edge_size(height, width, short, max_size)


def group_by_shape(
    sizes: Iterable[tuple[int, int]], limit: int | None = None, divisor: int = DIVISIBILITY
) -> list[list[int]]:
    """Indices of images that have one size once they are padded to multiples of ``divisor`` px.

    Args:
        sizes: (H, W) px of the images.
        limit: most images of a group.

    Returns:
        Groups in the order of their first images; every index is in one of them.
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
