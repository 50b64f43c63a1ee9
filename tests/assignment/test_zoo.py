"""The rules of other detectors: by hand and at their edges."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.heads import centernet, maps_for, retinanet
from helpers.heads import fcos as fcos_head
from helpers.rows import batch, exclusive, on, on_row, targets, threshold, triples

from onenet import Criterion, MinCostMatcher, Predictions
from onenet.assignment.class_losses import MatchabilityLoss, QualityFocalLoss
from onenet.assignment.zoo import (
    AdaptiveThreshold,
    AnchorOverlap,
    DynamicTopK,
    NearestCentre,
    anchors,
)
from onenet.ops.boxes import anchor_grid, cell_anchors

close = torch.testing.assert_close


def centre(**options):
    return MinCostMatcher(location=NearestCentre(**options), class_weight=0.0)


RULES = {
    "iou_threshold": threshold(),
    "centre": centre(),
    "atss": exclusive(AdaptiveThreshold()),
    "simota": exclusive(DynamicTopK()),
}


def squares(*rows):
    """Anchors of several levels, (count, stride, side) each, in a row around y = stride / 2."""
    cells = [cell_anchors([side], [1.0]) for _, _, side in rows]
    grids = [
        anchor_grid(cell, 1, count, stride, 0.5)
        for cell, (count, stride, _) in zip(cells, rows, strict=True)
    ]
    levels = [level for level, (count, _, _) in enumerate(rows) for _ in range(count)]
    return on(torch.cat(grids), levels)


def test_a_grid_point_stands_for_a_square_of_so_many_strides():
    found = anchors(on_row([[0, 0, 1, 1]] * 3), scale=3.0)
    assert found.tolist() == [[-4, -4, 8, 8], [0, -4, 12, 8], [4, -4, 16, 8]]
    given = squares((2, 4, 6))
    assert torch.equal(anchors(given, scale=3.0), given.samples)
    (alone,) = anchors(on_row([[0, 0, 1, 1]]), scale=3.0).tolist()
    assert alone == [-math.inf, -math.inf, math.inf, math.inf]
    cost = AnchorOverlap()(on_row([[0, 0, 1, 1]]), batch(targets([0, 0, 4, 4])))
    assert cost.tolist() == [[0.0]]


def test_iou_thresholds_by_hand():
    """IoU 0.6, 0.45, 0.3 and 0 with one box of 10 × 10: positive, ignored, negative, negative."""
    given = on([[0, 0, 10, 6], [0, 0, 10, 4.5], [0, 0, 10, 3], [20, 0, 30, 9]])
    found = threshold()(given, [targets([0, 0, 10, 10])])
    assert triples(found) == [(0, 0, 0)]
    assert found.ignored.tolist() == [[False, True, False, False]]
    found = threshold(low=0.2, high=0.4)(given, [targets([0, 0, 10, 10])])
    assert triples(found) == [(0, 0, 0), (0, 1, 0)]
    assert found.ignored.tolist() == [[False, False, True, False]]


def test_the_best_anchors_of_a_target_are_forced_and_not_ignored():
    """IoU 0.45 twice, the greatest of the first target; 0.1 of the second."""
    given = on([[0, 0, 10, 4.5], [0, 5.5, 10, 10], [0, 0, 10, 4], [30, 0, 31, 10]])
    goals = [targets([0, 0, 10, 10], [30, 0, 40, 10])]
    found = threshold()(given, goals)
    assert triples(found) == [(0, 0, 0), (0, 1, 0), (0, 3, 1)]
    assert found.ignored.tolist() == [[False, False, True, False]]
    found = threshold(low_quality=False)(given, goals)
    assert len(found) == 0 and found.ignored.tolist() == [[True, True, True, False]]


def test_a_forced_anchor_belongs_to_the_target_that_it_overlaps_most():
    """The only anchor is the best of both: IoU 0.7 and 0.3."""
    found = threshold()(on([[0, 0, 10, 10]]), [targets([0, 0, 10, 3], [0, 3, 10, 10])])
    assert triples(found) == [(0, 0, 1)]


def test_a_target_without_overlap_forces_nothing():
    found = threshold()(on([[0, 0, 4, 4], [4, 0, 8, 4]]), [targets([0, 0, 4, 4], [30, 30, 34, 34])])
    assert triples(found) == [(0, 0, 0)]


@pytest.mark.parametrize("loss", [None, MatchabilityLoss(1.5, 0.0), QualityFocalLoss()])
def test_ignored_samples_have_neither_loss_nor_gradient(loss):
    given = on([[0, 0, 10, 6], [0, 0, 10, 4.5], [0, 0, 10, 3]], classes=2)
    given.logits.copy_(torch.tensor([[1.0, -1.0], [2.0, 0.5], [-0.5, 0.0]])).requires_grad_()
    goals = [targets([0, 0, 10, 10])]
    criterion = Criterion(matcher=threshold(), class_loss=loss, per_positive=True)
    found = criterion(given, goals)["loss_ce"]
    found.backward()
    assert (given.logits.grad[0] != 0).tolist() == [[True] * 2, [False] * 2, [True] * 2]
    without = on([[0, 0, 10, 6], [0, 0, 10, 3]], classes=2)
    without.logits.copy_(given.logits[:, [0, 2]].detach())
    close(found.detach(), criterion(without, goals)["loss_ce"])


def test_only_images_with_objects_have_ignored_samples():
    given = on([[0, 0, 10, 6], [0, 0, 10, 4.5]])
    twice = Predictions(
        given.logits.expand(3, -1, -1), given.boxes.expand(3, -1, -1), given.samples, given.levels
    )
    goals = [targets(), targets([0, 0, 10, 10]), targets()]
    found = threshold()(twice, goals)
    assert triples(found) == [(1, 0, 0)]
    assert found.ignored.tolist() == [[False] * 2, [False, True], [False] * 2]


def test_losses_are_over_the_positives_of_a_matcher_that_gives_many():
    given = on([[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 8], [30, 30, 40, 40]])
    goals = [targets([0, 0, 10, 10], [0, 0, 1, 1])]
    per_target, per_positive = (
        Criterion(matcher=threshold(low_quality=False), per_positive=per)(given, goals)
        for per in (False, True)
    )
    for name, loss in per_target.items():
        close(per_positive[name], loss * 2 / 3)


def test_the_centre_by_hand():
    """Cells of 4 px: the centres 9 and 15 lie in the third and the fourth; two may share one."""
    given = on_row([[0, 0, 1, 1]] * 5)
    goals = targets([8, 0, 10, 4], [14, 0, 16, 4], [0, 0, 18, 4])
    assert triples(centre()(given, [goals])) == [(0, 2, 0), (0, 3, 1), (0, 2, 2)]


def test_the_centre_lies_on_the_level_that_answers_for_the_longer_side():
    """Half sides of 3, 8 and 30 px; nothing answers for 30 px, so the nearest of all gets it."""
    given = squares((8, 4, 8), (4, 8, 16))
    match = centre(level_sizes=[(-1, 5), (5, 20)])
    goals = targets([9, 0, 15, 4], [4, 0, 20, 4], [0, 0, 20, 60])
    assert triples(match(given, [goals]))[:2] == [(0, 2, 0), (0, 9, 1)]
    assert len(match(given, [goals])) == 3


def test_of_anchors_around_one_centre_the_most_similar_is_nearest():
    samples = torch.cat([anchor_grid(cell_anchors([4, 8, 16], [1.0]), 1, 3, 8, 0.5)])
    assert triples(centre()(on(samples), [targets([9, 0, 16, 8])])) == [(0, 4, 0)]


def test_atss_by_hand():
    """Two candidates on each level, of IoU 1/9, 1/9, 4/9 and 2/11.

    Their mean is 0.212 and their deviation 0.158: above 0.370 is the third alone. With one on each
    level, 1/9 and 4/9, they are 0.278 and 0.236, and no IoU is above 0.513.
    """
    given = squares((4, 4, 4), (2, 8, 8))
    goal = targets([0, -2, 12, 10])
    overlap = -AnchorOverlap()(given, batch(goal))[:, 0]
    close(overlap, torch.tensor([1 / 9, 1 / 9, 1 / 9, 0, 4 / 9, 2 / 11]))
    assert triples(exclusive(AdaptiveThreshold(topk=2))(given, [goal])) == [(0, 4, 0)]
    assert len(exclusive(AdaptiveThreshold(topk=1))(given, [goal])) == 0


def test_atss_takes_all_candidates_that_are_alike():
    """One level: five squares within the box have the same IoU, so none is below their mean."""
    match = exclusive(AdaptiveThreshold(topk=3, scale=1.0))
    found = match(on_row([[0, 0, 1, 1]] * 9), [targets([8, 0, 28, 4])])
    assert triples(found) == [(0, 3, 0), (0, 4, 0), (0, 5, 0)]


@pytest.mark.parametrize(("left", "inside"), [(-9.5, True), (-10.5, False)])
def test_atss_leaves_out_candidates_whose_centre_is_outside(left, inside):
    """The first overlaps most; its centre lies 0.25 px on either side of the box's left side."""
    given = on([[left, 0, 10, 10], *[[20, 0, 30, 10]] * 3])
    found = exclusive(AdaptiveThreshold())(given, [targets([0, 0, 10, 10])])
    assert triples(found) == ([(0, 0, 0)] if inside else [])


def test_a_contested_anchor_of_atss_goes_to_the_greatest_iou():
    goals = targets([0, 0, 10, 10], [0, 0, 10, 9])
    found = exclusive(AdaptiveThreshold())(on([[0, 0, 10, 9]]), [goals])
    assert triples(found) == [(0, 0, 1)]


def test_the_cost_of_simota_by_hand():
    """IoU 1, 0.5, 0.5 with a box of 8 × 4; score 0.25 of its class and 0.5 of the other.

    The third sample is in the middle, but not in the box; the last is in neither.
    """
    given = on_row([[0, 0, 8, 4], [0, 0, 4, 4], [0, 0, 8, 8], [0, 0, 8, 4]], [0.25] * 4, classes=2)
    location = DynamicTopK(radius=2.0, iou_weight=3.0)
    cost = location(given, batch(targets([0, 0, 8, 4])))[:, 0]
    entropy = -math.log(0.25) - math.log(0.5)
    assert cost.isinf().tolist() == [False, False, True, True]
    close(cost[:2], torch.tensor([entropy, entropy + 3 * math.log(2)]))
    # Its middle alone has samples, and k is 1: the second, of the greater IoU.
    cost = location(given, batch(targets([0, 0, 1, 4])))[:, 0]
    assert cost.isinf().tolist() == [True, False, True, True]
    assert cost[1].item() == pytest.approx(1e5, rel=1e-3)


@pytest.mark.parametrize(
    ("overlaps", "wanted"), [((1, 1, 1, 1), 4), ((1, 0.5, 0.5), 2), ((0.3,), 1)]
)
def test_simota_claims_as_many_as_the_ious_add_up_to(overlaps, wanted):
    boxes = [[0, 0, 16, 4 * overlap] for overlap in overlaps] + [[40, 0, 41, 1]] * (
        4 - len(overlaps)
    )
    found = exclusive(DynamicTopK())(on_row(boxes), [targets([0, 0, 16, 4])])
    assert [sample for _, sample, _ in triples(found)] == list(range(wanted))


def test_a_contested_sample_of_simota_goes_to_the_target_it_costs_least():
    """Each claims one, the same; its box is the first target's, its score the second's class."""
    given = on_row([[0, 0, 8, 4], [20, 0, 21, 1]], classes=2)
    goals = targets([0, 0, 8, 4], [0, 0, 8, 3.9], labels=[0, 1])
    assert triples(exclusive(DynamicTopK())(given, [goals])) == [(0, 0, 0)]
    given.logits[0, 0] = torch.tensor([-2.0, 2.0])
    assert triples(exclusive(DynamicTopK())(given, [goals])) == [(0, 0, 1)]


@pytest.mark.parametrize("name", RULES)
def test_no_targets_give_no_matches(name):
    found = RULES[name](on_row([[0, 0, 4, 4]] * 3, images=2), [targets(), targets()])
    assert len(found) == 0 and found.sample.dtype == torch.int64 and found.ignored is None


@pytest.mark.parametrize("name", RULES)
def test_images_do_not_matter_to_each_other(name):
    boxes = [[0, 0, 16, 4], [0, 0, 8, 4], [4, 0, 12, 4], [8, 0, 16, 4]]
    goals = [targets([0, 0, 16, 4], [4, 0, 13, 4]), targets(), targets([0, 0, 9, 4])]
    together = triples(RULES[name](on_row(boxes, images=3), goals))
    alone = [
        (number, sample, target)
        for number, goal in enumerate(goals)
        for _, sample, target in triples(RULES[name](on_row(boxes), [goal]))
    ]
    assert together == alone and {image for image, _, _ in together} == {0, 2}


@pytest.mark.parametrize("name", RULES)
def test_one_sample_and_many_targets(name):
    """M > N, fewer samples than k, and one level only."""
    found = triples(RULES[name](on([[0, 0, 4, 4]]), [targets(*[[0, 0, 4, 4]] * 3)]))
    assert found == [(0, 0, t) for t in range(3 if name == "centre" else 1)]


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("box", [[3, 3, 3, 3], [3, 0, 3, 4], [0, 3, 8, 3]])
def test_a_target_without_area(name, box):
    """It overlaps nothing and nothing lies in it; a centre and a middle it has."""
    given = on([[0, 0, 4, 4], [4, 0, 8, 4]])
    found = RULES[name](given, [targets(box)])
    assert len(found) == (name in ("centre", "simota"))
    losses = Criterion(matcher=RULES[name])(given, [targets(box)])
    assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize("name", ["simota"])
def test_predictions_that_are_not_numbers_choose_nothing(name):
    given = on_row([[0, 0, 8, 4]] * 2)
    given.logits[:] = math.nan
    assert len(RULES[name](given, [targets([0, 0, 8, 4])])) == 0


@pytest.mark.parametrize("head", [centernet, fcos_head, retinanet], ids=lambda head: head.__name__)
@pytest.mark.parametrize("name", RULES)
def test_every_head_learns_by_every_rule(name, head):
    """Points and anchors, one level and two; a target of the image's size and a small one."""
    torch.manual_seed(0)
    layers = head().train()
    goals = [targets([0, 0, 64, 32], [10, 8, 22, 20], labels=[0, 2], size=(32, 64)), targets()]
    given = layers(maps_for(layers))
    assert len(RULES[name](given, goals)) > 0
    losses = Criterion(matcher=RULES[name], per_positive=True)(given, goals)
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in layers.parameters())
    assert layers.cls_score.weight.grad.any()
