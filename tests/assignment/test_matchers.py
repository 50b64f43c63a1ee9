"""Which sample every target gets, on cost matrices small enough to work out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from onenet import HungarianMatcher, MinCostMatcher, Predictions, Targets
from onenet.assignment.costs import (
    PredictedLocation,
)
from onenet.assignment.matchers import Matcher
from onenet.errors import NonFiniteError
from onenet.ops import chunks

MATCHERS = [MinCostMatcher, HungarianMatcher]
close = torch.testing.assert_close


class GivenCost(nn.Module):
    """A location cost that is a prepared matrix; the targets' boxes say which columns they are."""

    def __init__(self, *rows):
        super().__init__()
        self.matrix = torch.tensor(rows, dtype=torch.float32)

    def forward(self, predictions, targets):
        return self.matrix[:, targets.boxes[:, 0].long()]


def numbered(*counts):
    """Images of so many targets, of class 0, whose boxes hold their numbers in the batch."""
    boxes = torch.arange(sum(counts), dtype=torch.float32)[:, None].repeat(1, 4)
    return [
        Targets(some, torch.zeros(len(some), dtype=torch.int64), (10, 10))
        for some in boxes.split(counts)
    ]


def predictions(images=1, samples=2, classes=1):
    boxes = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(images, samples, 4)
    levels = torch.zeros(samples, dtype=torch.int64)
    return Predictions(torch.zeros(images, samples, classes), boxes, boxes[0], levels)


def targets(*labels, size=(10, 10)):
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).repeat(len(labels), 1)
    return Targets(boxes, torch.tensor(labels, dtype=torch.int64), size)


def triples(matches):
    columns = (matches.image, matches.sample, matches.target)
    return list(zip(*(column.tolist() for column in columns), strict=True))


@pytest.mark.parametrize("matcher", MATCHERS)
def test_a_batch_without_targets_has_no_matches(matcher):
    matches = matcher(location=PredictedLocation())(predictions(images=2), [targets(), targets()])
    assert len(matches) == 0
    for column in (matches.image, matches.sample, matches.target):
        assert column.shape == (0,) and column.dtype == torch.int64


@pytest.mark.parametrize("matcher", MATCHERS)
def test_images_without_targets_are_skipped(matcher):
    match = matcher(location=GivenCost([1.0], [0.0]), class_weight=0.0)
    matches = match(predictions(images=3), numbered(0, 1, 0))
    assert triples(matches) == [(1, 1, 0)]
    assert matches.sample.dtype == torch.int64


@pytest.mark.parametrize("limit", [1, 4, 6, 1000])
def test_matches_are_ordered_by_image_then_target(monkeypatch, limit):
    """However many targets are looked at together: one, two, three or all five."""
    monkeypatch.setattr(chunks, "_CPU_THREAD", limit)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    location = GivenCost([5.0, 2.0, 0.0, 9.0, 0.0], [4.0, 3.0, 9.0, 0.0, 9.0])
    match = MinCostMatcher(location=location, class_weight=0.0)
    matches = match(predictions(images=2), numbered(2, 3))
    assert triples(matches) == [(0, 1, 0), (0, 0, 1), (1, 0, 0), (1, 1, 1), (1, 0, 2)]


def test_two_targets_may_share_the_cheapest_sample():
    match = MinCostMatcher(location=GivenCost([1.0, 2.0], [3.0, 4.0]), class_weight=0.0)
    assert triples(match(predictions(), numbered(2))) == [(0, 0, 0), (0, 0, 1)]


@pytest.mark.parametrize("limit", [1, 1000])
def test_hungarian_shares_no_sample_and_takes_the_least_total(monkeypatch, limit):
    """Greedy would give 1 + 9; the best total is 2 + 3. The pairs come by target, not by sample."""
    monkeypatch.setattr(chunks, "_CPU_THREAD", limit)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    match = HungarianMatcher(location=GivenCost([9.0, 1.0, 2.0], [9.0, 3.0, 9.0]), class_weight=0.0)
    matches = match(predictions(images=2), numbered(1, 2))
    assert triples(matches) == [(0, 0, 0), (1, 1, 0), (1, 0, 1)]


def test_more_targets_than_samples():
    location = GivenCost([3.0, 1.0, 2.0])
    few, many = predictions(samples=1), numbered(3)
    shared = MinCostMatcher(location=location, class_weight=0.0)(few, many)
    assert triples(shared) == [(0, 0, 0), (0, 0, 1), (0, 0, 2)]
    one = HungarianMatcher(location=location, class_weight=0.0)(few, many)
    assert triples(one) == [(0, 0, 1)]


def test_the_first_of_equally_cheap_samples_is_taken():
    match = MinCostMatcher(location=GivenCost([2.0], [1.0], [1.0]), class_weight=0.0)
    assert triples(match(predictions(samples=3), numbered(1))) == [(0, 1, 0)]


class TakenOnce(MinCostMatcher):
    """A user's own: the cheapest sample that no earlier target of the image has."""

    def choose(self, cost):
        cost, samples = cost.clone(), []
        for column in range(cost.shape[1]):
            samples.append(cost[:, column].argmin())
            cost[samples[-1]] = math.inf
        return torch.stack(samples), torch.arange(cost.shape[1])


class Dearest(MinCostMatcher):
    """Another's, which says that columns do not matter to each other."""

    columnwise = True

    def choose(self, cost):
        self.width = cost.shape[1]
        return cost.argmax(dim=0), torch.arange(cost.shape[1])


def test_a_matcher_of_ones_own_gets_one_image_at_a_time():
    """With both images at once the second target would find its sample taken."""
    assert not Matcher.columnwise and not TakenOnce.columnwise and MinCostMatcher.columnwise
    match = TakenOnce(location=GivenCost([1.0, 1.0, 1.0], [2.0, 2.0, 2.0]), class_weight=0.0)
    matches = match(predictions(images=2), numbered(1, 2))
    assert triples(matches) == [(0, 0, 0), (1, 0, 0), (1, 1, 1)]


def test_a_columnwise_matcher_of_ones_own_gets_several_images_at_once():
    match = Dearest(location=GivenCost([1.0, 1.0, 5.0], [2.0, 2.0, 2.0]), class_weight=0.0)
    matches = match(predictions(images=2), numbered(1, 2))
    assert triples(matches) == [(0, 1, 0), (1, 1, 0), (1, 0, 1)]
    assert match.width == 3


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_hungarian_refuses_a_cost_that_is_not_finite(value):
    match = HungarianMatcher(location=GivenCost([0.0], [value]), class_weight=0.0)
    with pytest.raises(NonFiniteError, match="cost is NaN or infinite, for image 1 of the batch"):
        match(predictions(images=2), numbered(0, 1))


def test_class_cost_0_ignores_the_logits():
    given = predictions()
    given.logits.fill_(math.nan)
    match = MinCostMatcher(location=GivenCost([1.0], [0.0]), class_weight=0.0)
    assert triples(match(given, numbered(1))) == [(0, 1, 0)]
    assert match.cost(given, 0, *numbered(1)).isfinite().all()


def test_class_cost_decides_between_equal_places():
    given = predictions(classes=2)
    given.logits[0, 1, 1] = 3.0
    match = MinCostMatcher(location=GivenCost([0.0, 0.0], [0.0, 0.0]))
    (goal,) = numbered(2)
    assert triples(match(given, [Targets(goal.boxes, torch.tensor([0, 1]), (10, 10))])) == [
        (0, 0, 0),
        (0, 1, 1),
    ]
