"""Which images go into a batch together."""

from __future__ import annotations

import numpy as np
import pytest

from onenet.data.batching import group_by_shape, pad_to, resized_shape
from onenet.data.images import resize_shortest_edge


@pytest.mark.parametrize(("size", "padded"), [(1, 32), (31, 32), (32, 32), (33, 64), (64, 64)])
def test_pad_to(size, padded):
    assert pad_to(size, 32) == padded


def test_groups_are_of_one_padded_size_in_order():
    sizes = [(30, 40), (64, 64), (32, 64), (33, 64), (1, 33), (65, 64)]
    assert group_by_shape(sizes) == [[0, 2, 4], [1, 3], [5]]
    assert group_by_shape(sizes, divisor=1) == [[0], [1], [2], [3], [4], [5]]
    assert group_by_shape(sizes, divisor=128) == [[0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
def test_a_limit_splits_groups(limit):
    sizes = [(32 * (i % 3), 32) for i in range(20)]
    groups = group_by_shape(sizes, limit)
    assert sorted(i for group in groups for i in group) == list(range(20))
    assert max(map(len, groups)) == min(limit, 7)
    assert all(len({sizes[i] for i in group}) == 1 for group in groups)
    full = [len(group) for group in groups if sizes[group[0]] == (0, 32)]
    assert full == [min(limit, 7 - n) for n in range(0, 7, limit)]


def test_no_image_no_group():
    assert group_by_shape([]) == []


@pytest.mark.parametrize("short", [0, 20, 33])
@pytest.mark.parametrize("size", [(24, 32), (32, 20), (10, 100), (7, 7)])
def test_the_resized_shape_is_that_of_the_resized_image(size, short):
    image = np.zeros((*size, 3), np.uint8)
    assert resized_shape(*size, short, 50) == resize_shortest_edge(image, short, 50).shape[:2]
