"""The order of training images: resumable, and equal for any number of processes."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import numpy as np
import pytest

from onenet.lightning.sampler import InfiniteBatchSampler, repeat_factors

FACTORS = np.array([1, 1.5, 2.25, 1, 3, 1, 1, 1.1, 1, 4.75], dtype=np.float32)
WIDE = np.array([True, False, True, True, False, False, True, True, True, False])


def batches(count: int, size: int = 10, batch_size: int = 4, **kwargs) -> list:
    """Batches of (position, index)."""
    sampler = InfiniteBatchSampler(size, batch_size, **{"seed": 5, **kwargs})
    return [[place[:2] for place in batch] for batch in islice(sampler, count)]


@pytest.mark.parametrize("factors", [None, FACTORS])
@pytest.mark.parametrize("wide", [None, WIDE])
@pytest.mark.parametrize("start", [0, 1, 2, 7, 40])
def test_resumed_stream_is_that_of_an_uninterrupted_run(wide, start, factors):
    options = {"wide": wide, "factors": factors}
    assert batches(20, start_iteration=start, **options) == batches(60, **options)[start:][:20]


@pytest.mark.parametrize("factors", [None, FACTORS])
@pytest.mark.parametrize("wide", [None, WIDE])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_processes_share_the_batch_of_a_single_one(wide, world_size, factors):
    options = {"wide": wide, "factors": factors, "start_iteration": 3}
    whole = batches(30, **options)
    shares = [
        batches(30, **options, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert {len(part) for part in parts} == {4 // world_size}
        assert sorted(sum(parts, [])) == sorted(batch)


@pytest.mark.parametrize("options", [{}, {"wide": WIDE, "rank": 1, "world_size": 2}])
def test_places_know_their_iteration(options):
    sampler = InfiniteBatchSampler(10, 4, seed=5, start_iteration=7, **options)
    found = [[place.iteration for place in batch] for batch in islice(sampler, 3)]
    assert found == [[i] * (4 // options.get("world_size", 1)) for i in (7, 8, 9)]


def test_every_image_once_an_epoch_in_a_new_order():
    stream = sum(batches(15), [])  # 60 positions: 6 epochs
    assert [position for position, _ in stream] == list(range(60))
    epochs = [tuple(index for _, index in stream[i : i + 10]) for i in range(0, 60, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len(set(epochs)) == 6


def test_an_epoch_holds_each_image_as_often_as_its_factor_says_rounded_at_random():
    sampler = InfiniteBatchSampler(10, 4, seed=5, factors=FACTORS)
    epochs = np.array([np.bincount(sampler._images_of(e), minlength=10) for e in range(4000)])
    whole = np.floor(FACTORS)
    assert ((epochs == whole) | (epochs == whole + 1)).all()
    assert (epochs[:, FACTORS == whole] == whole[FACTORS == whole]).all()
    assert epochs.mean(axis=0) == pytest.approx(FACTORS, abs=0.03)
    first = len(sampler._images_of(0))
    stream = [index for batch in batches(20, factors=FACTORS) for _, index in batch]
    assert sorted(stream[:first]) == sampler._images_of(0).tolist()
    second = stream[first : first + len(sampler._images_of(1))]
    assert sorted(second) == sampler._images_of(1).tolist()


def test_factors_of_one_change_nothing():
    assert batches(30, factors=np.ones(10)) == batches(30)


@pytest.mark.parametrize(
    ("root", "expected"), [(True, [2**0.5] * 2 + [2] * 3 + [1]), (False, [2, 2, 4, 4, 4, 1])]
)
def test_an_image_has_the_factor_of_its_rarest_class(root, expected):
    # Of six images, four show class 0, two class 1 and two class 3; nothing is on the last.
    shown = [[0, 0], [1, 0], [2, 0], [2, 1], [3, 0], [3, 1], [3, 3], [4, 3]]
    images, labels = np.array(shown).T
    found = repeat_factors(6, images, labels, threshold=4 / 3, root=root)
    assert found.dtype == np.float32
    assert found == pytest.approx(np.array(expected, dtype=np.float32))


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
        ({"factors": np.ones(9)}, "factors must hold 10 values"),
        ({"factors": np.full(10, 0.5)}, "factors must hold 10 values of at least 1"),
    ],
)
def test_bad_settings_are_named(kwargs, says):
    with pytest.raises(ValueError, match=says):
        batches(1, **kwargs)
