"""What the pictures of assignments show: positives, terms of the cost, maps of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from onenet.assignment.costs import PredefinedAnchor, PredefinedPoint, PredictedLocation
from onenet.assignment.explain import assign
from onenet.assignment.matchers import HungarianMatcher, MinCostMatcher
from onenet.assignment.one_to_many import Alignment, TopKMatcher
from onenet.ops.boxes import point_grid
from onenet.structures import Predictions, Targets

SIZE = (16, 16)


def predictions(logits=None, boxes=None, samples=None):
    """Of 2 × 2 points 8 px apart and two classes, boxes of 8 px around them."""
    points = point_grid(2, 2, 8)
    samples = torch.cat((points, points), dim=1) if samples is None else samples
    boxes = samples + torch.tensor([-4.0, -4, 4, 4]) if boxes is None else boxes
    logits = torch.zeros(len(samples), 2) if logits is None else logits
    levels = torch.zeros(len(samples), dtype=torch.int64)
    return Predictions(logits[None], boxes[None], samples, levels)


def objects(*boxes, labels=None):
    labels = [0] * len(boxes) if labels is None else labels
    return Targets(torch.tensor(boxes, dtype=torch.float32), torch.tensor(labels), SIZE)


def matcher(class_weight=2.0, location=None, kind=MinCostMatcher):
    return kind(location=location or PredictedLocation(), class_weight=class_weight)


def test_the_class_moves_the_positive_away_from_the_centre():
    # The object lies on the first point, and the second is surer of its class.
    logits = torch.full((4, 2), -6.0)
    logits[1, 1] = 6.0
    truth = objects([0, 0, 10, 8], labels=[1])
    found = assign(predictions(logits), truth, matcher(), PredefinedPoint())
    assert found.positives.tolist() == [1]
    assert found.by_location.tolist() == [0]
    assert found.points[1].tolist() == [12, 4]
    assert found.inside.tolist() == [False]
    without = assign(predictions(logits), truth, matcher(class_weight=0), PredefinedPoint())
    assert without.positives.tolist() == [0] and without.inside.tolist() == [True]


def test_queries_are_where_their_boxes_are_and_have_no_other_cost():
    logits = torch.full((4, 2), -6.0)
    logits[1, 1] = 6.0
    given = predictions(logits)
    boxes = torch.tensor([[0.0, 0, 9, 8], [1, 0, 11, 8], [0, 0, 2, 2], [8, 8, 12, 12]])
    found = assign(
        replace(given, boxes=boxes[None]), objects([0, 0, 10, 8], labels=[1]), matcher(), None
    )
    assert found.positives.tolist() == [1] and found.by_location is None
    assert found.points.tolist() == [[4.5, 4], [6, 4], [1, 1], [10, 10]]
    assert found.inside.tolist() == [True] and len(found.kinds) == 1
    assert found.around(0, margin=0.1) == pytest.approx((0, 0, 11, 8.8))


def test_samples_that_a_matcher_rules_out_cost_infinity_and_no_term_is_nan():
    """Only the first point lies within the object."""
    truth = objects([0, 0, 8, 8])
    match = TopKMatcher(location=PredictedLocation(), topk=2)
    found = assign(predictions(), truth, match, PredefinedPoint())
    assert found.positives.tolist() == [0]
    assert torch.equal(found.cost, match.cost(predictions(), 0, truth))
    assert found.cost.isinf().flatten().tolist() == [False, True, True, True]


def test_a_matcher_without_the_papers_terms_has_others():
    quality = Alignment(class_power=0.2, iou_power=0.8, outside=0.0)
    match = HungarianMatcher(location=quality, class_weight=0.0)
    found = assign(predictions(), objects([0, 0, 8, 8]), match, PredefinedPoint())
    assert list(found.terms) == ["other"] and found.positives.tolist() == [0]
    assert found.cost[0].item() == pytest.approx(-(0.5**0.2))


def test_terms_are_weighted_and_their_sum_is_the_cost():
    torch.manual_seed(0)
    p = predictions(torch.randn(4, 2), torch.rand(4, 4).sort(dim=1).values * 16)
    truth = objects([0, 0, 8, 8], [2, 4, 15, 16], labels=[1, 0])
    location = PredictedLocation(l1_weight=3.0, giou_weight=4.0)
    found = assign(p, truth, matcher(location=location), PredefinedPoint())
    assert list(found.terms) == ["class", "L1", "GIoU"]
    cost = matcher(location=location).cost(p, 0, truth)
    torch.testing.assert_close(found.cost, cost)
    assert torch.equal(found.positives, cost.argmin(dim=0))
    # The first point's box is the first object: no distance, and a GIoU of 1, weighted by 4.
    p = predictions()
    terms = assign(p, truth, matcher(location=location), PredefinedPoint()).terms
    assert terms["L1"][0, 0] == 0
    assert terms["GIoU"][0, 0] == pytest.approx(-4)
    # The second point's lies 8 px, half of the image's width, to the right: two sides of it.
    assert terms["L1"][1, 0] == pytest.approx(3 * (0.5 + 0.5))


def test_terms_of_other_location_costs():
    p = predictions(boxes=torch.rand(4, 4).sort(dim=1).values * 16)
    truth = objects([0, 0, 8, 8])
    found = assign(p, truth, matcher(location=PredefinedPoint()), PredefinedPoint())
    assert list(found.terms) == ["class", "L1"]
    anchors = predictions(samples=p.samples + torch.tensor([-4.0, -4, 4, 4]))
    found = assign(anchors, truth, matcher(0, PredefinedAnchor()), PredefinedAnchor())
    assert list(found.terms) == ["L1", "GIoU"]  # no class cost, no term
    assert found.terms["GIoU"][0, 0] == pytest.approx(-2)
    assert found.points[0].tolist() == [4, 4]


def test_what_has_no_weight_is_a_term_of_its_own():
    # The farthest sides are 8, 12, 12 and 12 px away, and the level answers for 9 px and more.
    levels = PredefinedPoint(level_sizes=[(9.0, 100.0)])
    found = assign(predictions(), objects([0, 0, 12, 5]), matcher(0, levels), levels)
    assert list(found.terms) == ["L1", "other"]
    assert found.terms["other"][:, 0].tolist() == [9999, 0, 0, 0]
    # Twice the distance of (12, 4) to the centre (6, 2.5), in parts of 16 px.
    assert found.terms["L1"][1, 0] == pytest.approx(5 * 15 / 16)


def test_an_object_without_a_sample():
    truth = objects(*[[0, 0, 8, 8]] * 5)  # of four samples
    found = assign(predictions(), truth, matcher(kind=HungarianMatcher), PredefinedPoint())
    assert sorted(found.positives.tolist()) == [-1, 0, 1, 2, 3]
    left_over = found.positives.tolist().index(-1)
    assert found.level_of(left_over) == 0
    assert found.inside.nonzero().flatten().tolist() == [found.positives.tolist().index(0)]
    assert found.by_location.tolist() == [0] * 5


def test_the_window_shows_the_object_and_its_positives():
    logits = torch.full((4, 2), -6.0)
    logits[3, 0] = 9.0
    found = assign(predictions(logits), objects([2, 2, 6, 7]), matcher(9), PredefinedPoint())
    assert found.positives.tolist() == [3]
    assert found.around(0, margin=0.25) == pytest.approx((1, 0.75, 12, 12))
    assert found.around(0, margin=10) == (0, 0, 16, 16)  # of the image, no more
