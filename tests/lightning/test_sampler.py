"""The order of training images: resumable, and equal for any number of processes."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import numpy as np
import pytest

from onenet.lightning.sampler import InfiniteBatchSampler

WIDE = np.array([True, False, True, True, False, False, True, True, True, False])


def batches(count: int, size: int = 10, batch_size: int = 4, **kwargs) -> list:
    sampler = InfiniteBatchSampler(size, batch_size, **{"seed": 5, **kwargs})
    return list(islice(sampler, count))


@pytest.mark.parametrize("wide", [None, WIDE])
@pytest.mark.parametrize("start", [0, 1, 2, 7, 40])
def test_resumed_stream_is_that_of_an_uninterrupted_run(wide, start):
    assert batches(20, wide=wide, start_iteration=start) == batches(60, wide=wide)[start:][:20]


@pytest.mark.parametrize("wide", [None, WIDE])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_processes_share_the_batch_of_a_single_one(wide, world_size):
    whole = batches(30, wide=wide, start_iteration=3)
    shares = [
        batches(30, wide=wide, start_iteration=3, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert {len(part) for part in parts} == {4 // world_size}
        assert sorted(sum(parts, [])) == sorted(batch)


def test_every_image_once_an_epoch_in_a_new_order():
    stream = sum(batches(15), [])  # 60 positions: 6 epochs
    assert [position for position, _ in stream] == list(range(60))
    epochs = [tuple(index for _, index in stream[i : i + 10]) for i in range(0, 60, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len(set(epochs)) == 6


def test_grouped_batches_have_one_orientation_and_lose_no_image():
    grouped = batches(200, wide=WIDE)
    for batch in grouped:
        assert len({bool(WIDE[index]) for _, index in batch}) == 1
    positions = [position for batch in grouped for position, _ in batch]
    assert len(set(positions)) == 800  # every position at most once
    assert set(range(780)) <= set(positions)  # what is left waits in the two buckets
    counts = Counter(index for batch in grouped for _, index in batch)
    assert set(counts) == set(range(10)) and max(counts.values()) - min(counts.values()) <= 2


def test_grouping_changes_batches_but_not_positions():
    index_of = dict(sum(batches(50), []))
    for position, index in sum(batches(30, wide=WIDE), []):
        assert index_of[position] == index


@pytest.mark.parametrize("wide", [None, [True], [False]])
def test_one_image_fills_a_batch(wide):
    wide = None if wide is None else np.array(wide)
    assert batches(2, size=1, wide=wide) == [
        [(i, 0) for i in (0, 1, 2, 3)],
        [(i, 0) for i in (4, 5, 6, 7)],
    ]


def test_rare_orientation_waits_for_its_batch():
    grouped = batches(40, size=10, wide=np.arange(10) == 3)
    rare = [batch for batch in grouped if batch[0][1] == 3]
    assert rare and all([index for _, index in batch] == [3] * 4 for batch in rare)


def test_seeds_differ_and_iterating_twice_does_not():
    assert batches(5) == batches(5) != batches(5, seed=6)
    sampler = InfiniteBatchSampler(10, 4, seed=5, start_iteration=2)
    assert list(islice(sampler, 5)) == list(islice(sampler, 5))


@pytest.mark.parametrize(
    "kwargs, says",
    [
        ({"batch_size": 5, "world_size": 2}, "IMS_PER_BATCH .* 5 images for 2 processes"),
        ({"batch_size": 0}, "IMS_PER_BATCH .* 0 images"),
        ({"size": 0}, "0 images"),
        ({"wide": np.array([True])}, "10 values|one for each image, got 1"),
    ],
)
def test_bad_settings_are_named(kwargs, says):
    with pytest.raises(ValueError, match=says):
        batches(1, **kwargs)
