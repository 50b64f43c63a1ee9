"""Which sample every target gets, on cost matrices small enough to work out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from onenet import HungarianMatcher, MinCostMatcher, Predictions, Targets
from onenet.costs import (
    PredefinedAnchor,
    PredefinedPoint,
    PredictedLocation,
    centre_cost,
    focal_cost,
    giou_cost,
    l1_cost,
    level_cost,
)
from onenet.matcher import NonFiniteError

MATCHERS = [MinCostMatcher, HungarianMatcher]
close = torch.testing.assert_close


class GivenCost(nn.Module):
    """A location cost that hands out prepared matrices by their number of targets."""

    def __init__(self, *matrices):
        super().__init__()
        self.matrices = {len(m[0]): torch.tensor(m, dtype=torch.float32) for m in matrices}

    def forward(self, boxes, samples, levels, targets):
        return self.matrices[len(targets)]


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
    match = matcher(location=GivenCost([[1.0], [0.0]]), class_weight=0.0)
    matches = match(predictions(images=3), [targets(), targets(0), targets()])
    assert triples(matches) == [(1, 1, 0)]
    assert matches.sample.dtype == torch.int64


def test_matches_are_ordered_by_image_then_target():
    location = GivenCost([[0.0, 9.0, 0.0], [9.0, 0.0, 9.0]], [[5.0, 2.0], [4.0, 3.0]])
    match = MinCostMatcher(location=location, class_weight=0.0)
    matches = match(predictions(images=2), [targets(0, 0), targets(0, 0, 0)])
    assert triples(matches) == [(0, 1, 0), (0, 0, 1), (1, 0, 0), (1, 1, 1), (1, 0, 2)]


def test_two_targets_may_share_the_cheapest_sample():
    match = MinCostMatcher(location=GivenCost([[1.0, 2.0], [3.0, 4.0]]), class_weight=0.0)
    assert triples(match(predictions(), [targets(0, 0)])) == [(0, 0, 0), (0, 0, 1)]


def test_hungarian_shares_no_sample_and_takes_the_least_total():
    """Greedy would give 1 + 9; the best total is 2 + 3. The pairs come by target, not by sample."""
    match = HungarianMatcher(location=GivenCost([[1.0, 2.0], [3.0, 9.0]]), class_weight=0.0)
    assert triples(match(predictions(), [targets(0, 0)])) == [(0, 1, 0), (0, 0, 1)]


def test_more_targets_than_samples():
    location = GivenCost([[3.0, 1.0, 2.0]])
    few, many = predictions(samples=1), [targets(0, 0, 0)]
    shared = MinCostMatcher(location=location, class_weight=0.0)(few, many)
    assert triples(shared) == [(0, 0, 0), (0, 0, 1), (0, 0, 2)]
    one = HungarianMatcher(location=location, class_weight=0.0)(few, many)
    assert triples(one) == [(0, 0, 1)]


def test_the_first_of_equally_cheap_samples_is_taken():
    match = MinCostMatcher(location=GivenCost([[2.0], [1.0], [1.0]]), class_weight=0.0)
    assert triples(match(predictions(samples=3), [targets(0)])) == [(0, 1, 0)]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_hungarian_refuses_a_cost_that_is_not_finite(value):
    match = HungarianMatcher(location=GivenCost([[0.0], [value]]), class_weight=0.0)
    with pytest.raises(NonFiniteError, match="cost is NaN or infinite, for image 1 of the batch"):
        match(predictions(images=2), [targets(), targets(0)])


def test_class_cost_0_ignores_the_logits():
    given = predictions()
    given.logits.fill_(math.nan)
    match = MinCostMatcher(location=GivenCost([[1.0], [0.0]]), class_weight=0.0)
    assert triples(match(given, [targets(0)])) == [(0, 1, 0)]
    assert match.cost(given, 0, targets(0)).isfinite().all()


def test_class_cost_decides_between_equal_places():
    given = predictions(classes=2)
    given.logits[0, 1, 1] = 3.0
    match = MinCostMatcher(location=GivenCost([[0.0, 0.0], [0.0, 0.0]]))
    assert triples(match(given, [targets(0, 1)])) == [(0, 0, 0), (0, 1, 1)]


def test_focal_cost_by_hand():
    """p = ½: 0.25 · ¼ ln 2 - 0.75 · ¼ ln 2; p = ¾: 0.25 / 16 ln(4/3) - 0.75 · 9/16 ln 4."""
    half = -0.125 * math.log(2)
    sure = 0.25 / 16 * math.log(4 / 3) - 0.75 * 9 / 16 * math.log(4)
    logits = torch.tensor([[0.0, math.log(3)], [math.log(3), 0.0]])
    cost = focal_cost(logits, torch.tensor([0, 1, 1]))
    close(cost, torch.tensor([[half, sure, sure], [sure, half, half]]))


def test_focal_cost_of_certain_scores_is_finite():
    cost = focal_cost(torch.tensor([[1e4], [-1e4]]), torch.tensor([0]))
    assert cost.isfinite().all() and cost[0] < cost[1]


def test_focal_cost_of_one_class_and_bfloat16_is_float32():
    cost = focal_cost(torch.zeros(3, 1, dtype=torch.bfloat16), torch.tensor([0, 0]))
    assert cost.shape == (3, 2) and cost.dtype == torch.float32


def test_l1_cost_counts_in_parts_of_the_image():
    """Image 20 wide, 10 high: dx / 20 + dy / 10."""
    boxes = torch.tensor([[0.0, 0.0, 10.0, 5.0], [0.0, 0.0, 20.0, 10.0]])
    goal = box_targets([0, 0, 10, 5], [2, 1, 10, 10])
    close(l1_cost(boxes, goal), torch.tensor([[0.0, 0.1 + 0.1 + 0.5], [1.0, 0.1 + 0.1 + 0.5]]))


def test_predicted_location_weighs_l1_and_giou():
    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [8.0, 0.0, 10.0, 2.0]])
    goal = box_targets([0, 0, 2, 2], size=(10, 10))
    # The second: 1.6 away; hull 10 × 2, union 8.
    close(giou_cost(boxes, goal), torch.tensor([[-1.0], [0.6]]))
    cost = PredictedLocation(l1_weight=5.0, giou_weight=2.0)(boxes, None, None, goal)
    close(cost, torch.tensor([[-2.0], [5 * 1.6 + 2 * 0.6]]))


def test_predefined_anchor_looks_at_the_anchors_alone():
    anchors = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    boxes, goal = torch.full((1, 4), math.nan), box_targets([0, 0, 2, 2])
    cost = PredefinedAnchor()(boxes, anchors, None, goal)
    close(cost, torch.tensor([[-2.0]]))


def test_predefined_point_is_twice_the_distance_to_the_centre():
    points = torch.tensor([[5.0, 5.0], [9.0, 2.0]])
    goal = box_targets([4, 4, 6, 6])
    close(centre_cost(points, goal), torch.tensor([[0.0], [2 * (4 / 20 + 3 / 10)]]))
    cost = PredefinedPoint(l1_weight=5.0)(None, points.repeat(1, 2), None, goal)
    close(cost, torch.tensor([[0.0], [5.0]]))


@pytest.mark.parametrize("side", range(4))
def test_level_cost_counts_each_of_the_four_sides(side):
    """From the point (50, 50) one side is 41 px away, the others 10."""
    box = [40.0, 40.0, 60.0, 60.0]
    box[side] += -31.0 if side < 2 else 31.0
    goal = box_targets(box, size=(100, 100))
    sizes = torch.tensor([[-1.0, 40.0], [40.0, 80.0]])
    points = torch.tensor([[50.0, 50.0], [50.0, 50.0]])
    cost = level_cost(points, torch.tensor([0, 1]), goal, sizes)
    close(cost, torch.tensor([[9999.0], [0.0]]))


def test_the_ends_of_a_levels_range_belong_to_it():
    goal = box_targets([10, 10, 90, 90], size=(100, 100))
    sizes = torch.tensor([[0.0, 40.0], [40.0, 80.0], [40.5, math.inf], [0.0, 39.5]])
    cost = level_cost(torch.full((4, 2), 50.0), torch.arange(4), goal, sizes)
    assert cost.flatten().tolist() == [0.0, 0.0, 9999.0, 9999.0]


def test_the_level_outweighs_every_other_cost():
    points = torch.tensor([[50.0, 50.0], [0.0, 0.0]])
    location = PredefinedPoint(level_sizes=[(-1, 30), (30, math.inf)])
    boxes = points.repeat(1, 2)
    given = Predictions(torch.zeros(1, 2, 1), boxes[None], boxes, torch.tensor([0, 1]))
    goal = box_targets([10, 10, 90, 90], size=(100, 100))
    assert triples(MinCostMatcher(location=location)(given, [goal])) == [(0, 1, 0)]
