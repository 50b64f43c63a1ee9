"""What it costs to give a sample to a target, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from onenet import MinCostMatcher, Predictions, Targets
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
from onenet.structures import TargetBatch

close = torch.testing.assert_close


def predicted(boxes, samples=None):
    """Predictions of one image; the samples are the boxes unless they are given."""
    levels = torch.zeros(len(boxes), dtype=torch.int64)
    samples = boxes if samples is None else samples
    return Predictions(torch.zeros(1, len(boxes), 1), boxes[None], samples, levels)


def targets(*labels):
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).repeat(len(labels), 1)
    return Targets(boxes, torch.tensor(labels, dtype=torch.int64), (10, 10))


def box_targets(*boxes, size=(10, 20)):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Targets(boxes, torch.zeros(len(boxes), dtype=torch.int64), size)


def batch(*images):
    return TargetBatch.of(images, torch.device("cpu"))


def random_boxes(*shape, seed):
    """Boxes in 200 × 100 px, some of them without width or height."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(*shape, 4, generator=generator) * torch.tensor([100.0, 50, 100, 50])
    boxes = torch.cat((corners[..., :2], corners[..., :2] + corners[..., 2:]), dim=-1)
    boxes[..., ::5, 2] = boxes[..., ::5, 0]
    boxes[..., ::7, 3] = boxes[..., ::7, 1]
    return boxes


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
    cost = PredictedLocation(l1_weight=5.0, giou_weight=2.0)(predicted(boxes), batch(goal))
    close(cost, torch.tensor([[-2.0], [5 * 1.6 + 2 * 0.6]]))


def test_predefined_anchor_looks_at_the_anchors_alone():
    anchors = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    boxes, goal = torch.full((1, 4), math.nan), box_targets([0, 0, 2, 2])
    cost = PredefinedAnchor()(predicted(boxes, anchors), batch(goal))
    close(cost, torch.tensor([[-2.0]]))


def test_predefined_point_is_twice_the_distance_to_the_centre():
    points = torch.tensor([[5.0, 5.0], [9.0, 2.0]])
    goal = box_targets([4, 4, 6, 6])
    close(centre_cost(points, batch(goal)), torch.tensor([[0.0], [2 * (4 / 20 + 3 / 10)]]))
    cost = PredefinedPoint(l1_weight=5.0)(predicted(points.repeat(1, 2)), batch(goal))
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
    matches = MinCostMatcher(location=location)(given, [goal])
    assert [matches.image.item(), matches.sample.item(), matches.target.item()] == [0, 1, 0]


@pytest.mark.parametrize("weights", [(5.0, 2.0), (0.0, 2.0), (3.0, 0.0)])
def test_the_fused_location_cost_is_the_sum_of_the_plain_ones(weights):
    """Two images, boxes and targets without area among them, one box the target's own."""
    l1_weight, giou_weight = weights
    boxes = random_boxes(2, 64, seed=0)
    goals = [
        Targets(random_boxes(count, seed=count), torch.zeros(count, dtype=torch.int64), (100, 200))
        for count in (15, 8)
    ]
    boxes[0, 3] = goals[0].boxes[2]
    given = Predictions(torch.zeros(2, 64, 1), boxes, boxes[0], torch.zeros(64))
    plain = l1_weight * l1_cost(boxes, batch(*goals)) + giou_weight * giou_cost(
        boxes, batch(*goals)
    )
    fused = PredictedLocation(l1_weight=l1_weight, giou_weight=giou_weight)
    close(fused(given, batch(*goals)), plain, rtol=1e-5, atol=1e-5)
    assert fused(given, batch(box_targets(), box_targets())).shape == (64, 0)
