"""Which sample every target gets, on cost matrices small enough to work out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from onenet import HungarianMatcher, MinCostMatcher, Predictions, Targets
from onenet.assignment.costs import (
    PredefinedAnchor,
    PredefinedPoint,
    PredictedLocation,
    centre_cost,
    focal_cost,
    giou_cost,
    l1_cost,
    level_cost,
)
from onenet.assignment.matchers import Matcher
from onenet.errors import NonFiniteError
from onenet.ops import chunks
from onenet.structures import TargetBatch

MATCHERS = [MinCostMatcher, HungarianMatcher]
close = torch.testing.assert_close


class GivenCost(nn.Module):
    """A location cost that is a prepared matrix; the targets' boxes say which columns they are."""

    def __init__(self, *rows):
        super().__init__()
        self.matrix = torch.tensor(rows, dtype=torch.float32)

    def forward(self, boxes, samples, levels, targets):
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


def box_targets(*boxes, size=(10, 20)):
    boxes = torch.tensor(boxes, dtype=torch.float32)
    return Targets(boxes, torch.zeros(len(boxes), dtype=torch.int64), size)


def batch(*images):
    return TargetBatch.of(images, torch.device("cpu"))


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


def test_focal_cost_by_hand():
    """p = ½: 0.25 · ¼ ln 2 - 0.75 · ¼ ln 2; p = ¾: 0.25 / 16 ln(4/3) - 0.75 · 9/16 ln 4."""
    half = -0.125 * math.log(2)
    sure = 0.25 / 16 * math.log(4 / 3) - 0.75 * 9 / 16 * math.log(4)
    logits = torch.tensor([[0.0, math.log(3)], [math.log(3), 0.0]])
    cost = focal_cost(logits[None], batch(targets(0, 1, 1)))
    close(cost, torch.tensor([[half, sure, sure], [sure, half, half]]))


def test_focal_cost_of_certain_scores_is_finite():
    cost = focal_cost(torch.tensor([[[1e4], [-1e4]]]), batch(targets(0)))
    assert cost.isfinite().all() and cost[0] < cost[1]


def test_focal_cost_of_one_class_and_bfloat16_is_float32():
    cost = focal_cost(torch.zeros(1, 3, 1, dtype=torch.bfloat16), batch(targets(0, 0)))
    assert cost.shape == (3, 2) and cost.dtype == torch.float32


def test_l1_cost_counts_in_parts_of_the_image():
    """Image 20 wide, 10 high: dx / 20 + dy / 10."""
    boxes = torch.tensor([[0.0, 0.0, 10.0, 5.0], [0.0, 0.0, 20.0, 10.0]])
    goal = box_targets([0, 0, 10, 5], [2, 1, 10, 10])
    close(
        l1_cost(boxes[None], batch(goal)),
        torch.tensor([[0.0, 0.1 + 0.1 + 0.5], [1.0, 0.1 + 0.1 + 0.5]]),
    )


def test_predicted_location_weighs_l1_and_giou():
    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [8.0, 0.0, 10.0, 2.0]])
    goal = box_targets([0, 0, 2, 2], size=(10, 10))
    # The second: 1.6 away; hull 10 × 2, union 8.
    close(giou_cost(boxes[None], batch(goal)), torch.tensor([[-1.0], [0.6]]))
    cost = PredictedLocation(l1_weight=5.0, giou_weight=2.0)(boxes[None], None, None, batch(goal))
    close(cost, torch.tensor([[-2.0], [5 * 1.6 + 2 * 0.6]]))


def test_predefined_anchor_looks_at_the_anchors_alone():
    anchors = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    boxes, goal = torch.full((1, 4), math.nan), box_targets([0, 0, 2, 2])
    cost = PredefinedAnchor()(boxes[None], anchors, None, batch(goal))
    close(cost, torch.tensor([[-2.0]]))


def test_predefined_point_is_twice_the_distance_to_the_centre():
    points = torch.tensor([[5.0, 5.0], [9.0, 2.0]])
    goal = box_targets([4, 4, 6, 6])
    close(centre_cost(points, batch(goal)), torch.tensor([[0.0], [2 * (4 / 20 + 3 / 10)]]))
    cost = PredefinedPoint(l1_weight=5.0)(None, points.repeat(1, 2), None, batch(goal))
    close(cost, torch.tensor([[0.0], [5.0]]))


@pytest.mark.parametrize("side", range(4))
def test_level_cost_counts_each_of_the_four_sides(side):
    """From the point (50, 50) one side is 41 px away, the others 10."""
    box = [40.0, 40.0, 60.0, 60.0]
    box[side] += -31.0 if side < 2 else 31.0
    goal = box_targets(box, size=(100, 100))
    sizes = torch.tensor([[-1.0, 40.0], [40.0, 80.0]])
    points = torch.tensor([[50.0, 50.0], [50.0, 50.0]])
    cost = level_cost(points, torch.tensor([0, 1]), batch(goal), sizes)
    close(cost, torch.tensor([[9999.0], [0.0]]))


def test_the_ends_of_a_levels_range_belong_to_it():
    goal = box_targets([10, 10, 90, 90], size=(100, 100))
    sizes = torch.tensor([[0.0, 40.0], [40.0, 80.0], [40.5, math.inf], [0.0, 39.5]])
    cost = level_cost(torch.full((4, 2), 50.0), torch.arange(4), batch(goal), sizes)
    assert cost.flatten().tolist() == [0.0, 0.0, 9999.0, 9999.0]


def test_the_level_outweighs_every_other_cost():
    points = torch.tensor([[50.0, 50.0], [0.0, 0.0]])
    location = PredefinedPoint(level_sizes=[(-1, 30), (30, math.inf)])
    boxes = points.repeat(1, 2)
    given = Predictions(torch.zeros(1, 2, 1), boxes[None], boxes, torch.tensor([0, 1]))
    goal = box_targets([10, 10, 90, 90], size=(100, 100))
    assert triples(MinCostMatcher(location=location)(given, [goal])) == [(0, 1, 0)]
