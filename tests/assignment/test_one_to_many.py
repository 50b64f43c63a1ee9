"""Matchers of the one-to-many branch and POTO, on grids small enough to work out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.rows import batch, on_row, targets, triples

from onenet import HungarianMatcher, MinCostMatcher, Predictions, Targets
from onenet.assignment.costs import PredictedLocation
from onenet.assignment.one_to_many import (
    Alignment,
    CentreRegion,
    ExclusiveMatcher,
    TopKMatcher,
    centres,
    inside,
    spacing,
)
from onenet.ops.boxes import anchor_grid, cell_anchors, iou, point_grid

close = torch.testing.assert_close


def alignment(topk=8, **changes):
    quality = Alignment(**({"class_power": 0.5, "iou_power": 3.0} | changes))
    return ExclusiveMatcher(location=quality, class_weight=0.0, topk=topk)


def poto():
    quality = Alignment(class_power=0.2, iou_power=0.8, outside=0.0)
    return HungarianMatcher(location=quality, class_weight=0.0)


def top(topk, **options):
    return TopKMatcher(location=PredictedLocation(), topk=topk, **options)


def region(radius=1.5, level_sizes=None):
    return ExclusiveMatcher(
        location=CentreRegion(radius=radius, level_sizes=level_sizes), class_weight=0.0
    )


ALL = {"alignment": alignment(), "poto": poto(), "topk": top(2), "points": region()}


def test_points_on_the_sides_of_a_box_are_not_inside():
    points = torch.tensor([[2.0, 2.0], [4.0, 3.0], [4.0, 4.0], [3.0, 3.0]])
    boxes = torch.tensor([[2.0, 2.0, 4.0, 4.0], [0.0, 0.0, 9.0, 9.0], [3.0, 3.0, 3.0, 3.0]])
    expected = [[False, True, False], [False, True, False], [False, True, False]]
    assert inside(points, boxes).tolist() == [*expected, [True, True, False]]


def test_the_spacing_of_points_and_anchors_is_their_levels_stride():
    points = [point_grid(3, 4, 8), point_grid(2, 1, 16), point_grid(1, 1, 32)]
    anchors = [
        anchor_grid(cell_anchors([size], (0.5, 1.0, 2.0)), 2, 3, stride, 0.5)
        for size, stride in ((10, 8), (23, 16))
    ]
    for grids, strides in (
        ([p.repeat(1, 2) for p in points], (8.0, 16.0, math.inf)),
        (anchors, (8.0, 16.0)),
    ):
        counts = torch.tensor([len(grid) for grid in grids])
        levels = torch.arange(len(grids)).repeat_interleave(counts)
        samples = torch.cat(grids)
        none = torch.empty(1, len(samples), 1)
        found = spacing(Predictions(none, samples[None], samples, levels))
        close(found, torch.tensor(strides)[levels], rtol=0, atol=1e-4)


def test_iou_by_hand():
    a = torch.tensor([[0.0, 0.0, 4.0, 2.0], [0.0, 0.0, 1.0, 1.0], [3.0, 3.0, 3.0, 3.0]])
    b = torch.tensor([[2.0, 0.0, 6.0, 2.0], [1.0, 0.0, 2.0, 1.0], [3.0, 3.0, 3.0, 3.0]])
    close(iou(a, b), torch.tensor([4 / 12, 0.0, 0.0]))
    assert iou(a[:, None], b[None]).shape == (3, 3)


def test_the_alignment_by_hand():
    """Half the box, at score 0.25: 0.25^0.5 · 0.5^3 = 0.0625; the third point is outside."""
    given = on_row([[0, 0, 4, 4], [0, 0, 8, 4], [0, 0, 8, 4]], scores=[0.25, 0.81, 0.99])
    cost = alignment().costs(given, batch(targets([0, 0, 8, 4])))
    close(cost, torch.tensor([[-0.0625], [-0.9], [math.inf]]))
    cost = poto().costs(given, batch(targets([0, 0, 8, 4])))
    close(cost, -torch.tensor([[0.25**0.2 * 0.5**0.8], [0.81**0.2], [0.0]]))


def test_alignment_reads_the_score_of_the_targets_class():
    given = on_row([[0, 0, 8, 4]] * 2, scores=[0.9, 0.1], classes=2)
    match = alignment(topk=1)
    assert triples(match(given, [targets([0, 0, 8, 4], labels=[0])])) == [(0, 0, 0)]
    given.logits[0, :, 1] = torch.tensor([-3.0, 3.0])
    assert triples(match(given, [targets([0, 0, 8, 4], labels=[1])])) == [(0, 1, 0)]


def test_alignment_takes_the_best_within_the_box_alone():
    """Five samples, the last beyond the box though its box is the best of all."""
    boxes = [[0, 0, 16, 4], [0, 0, 8, 4], [0, 0, 12, 4], [0, 0, 4, 4], [0, 0, 16, 4]]
    found = alignment(topk=3)(on_row(boxes), [targets([0, 0, 16, 4])])
    assert {sample for _, sample, _ in triples(found)} == {0, 1, 2}
    assert len(alignment(topk=9)(on_row(boxes), [targets([0, 0, 16, 4])])) == 4


def test_a_contested_sample_goes_to_the_claimant_that_it_fits_best():
    """The boxes overlap at x = 6, whose sample predicts the second target."""
    given = on_row([[0, 0, 8, 4], [4, 0, 12, 4], [4, 0, 12, 4]])
    goals = targets([0, 0, 8, 4], [4, 0, 12, 4])
    assert triples(alignment()(given, [goals])) == [(0, 0, 0), (0, 1, 1), (0, 2, 1)]


def test_of_two_equal_targets_the_first_gets_the_contested_samples():
    given = on_row([[0, 0, 8, 4]] * 2)
    found = alignment()(given, [targets([0, 0, 8, 4], [0, 0, 8, 4])])
    assert triples(found) == [(0, 0, 0), (0, 1, 0)]


def test_a_target_that_no_sample_lies_in_is_not_aligned_but_gets_one_of_the_topk():
    given = on_row([[0, 0, 4, 4], [4, 0, 8, 4]])
    goal = targets([4.5, 0, 5, 1])
    assert len(alignment()(given, [goal])) == 0
    assert triples(top(2, class_weight=0.0)(given, [goal])) == [(0, 1, 0)]


def test_topk_takes_the_cheapest_within_the_box():
    """Sample 4 is the cheapest of all, but lies beyond the box; 0 and 2 are the next."""
    goal = [0, 0, 16, 4]
    boxes = [[0, 0, 15, 4], [0, 0, 4, 4], [0, 0, 12, 4], [0, 0, 8, 4], goal]
    given = on_row(boxes)
    assert triples(top(2, class_weight=0.0)(given, [targets(goal)])) == [(0, 0, 0), (0, 2, 0)]
    assert triples(top(1, class_weight=0.0)(given, [targets(goal)])) == [(0, 0, 0)]
    assert triples(MinCostMatcher(location=PredictedLocation())(given, [targets(goal)])) == [
        (0, 4, 0)
    ]


def test_topk_counts_the_class_cost():
    given = on_row([[0, 0, 8, 4], [0, 0, 7, 4]], scores=[0.01, 0.9])
    assert triples(top(1)(given, [targets([0, 0, 8, 4])])) == [(0, 1, 0)]
    assert triples(top(1, class_weight=0.0)(given, [targets([0, 0, 8, 4])])) == [(0, 0, 0)]


def test_targets_share_samples_of_topk():
    """Three equal targets, two samples: all get both, ordered by target."""
    given = on_row([[0, 0, 8, 4], [0, 0, 7, 4]])
    found = top(5, class_weight=0.0)(given, [targets(*[[0, 0, 8, 4]] * 3)])
    assert triples(found) == [(0, s, t) for t in range(3) for s in (0, 1)]


def test_points_are_those_in_the_middle():
    """Strides of 4: 1.5 of them around x = 10 reach from 4 to 16, inside the box alone."""
    given = on_row([[0, 0, 1, 1]] * 6)
    found = region()(given, [targets([0, 0, 20, 4])])
    assert triples(found) == [(0, 1, 0), (0, 2, 0), (0, 3, 0)]
    found = region(radius=0.5)(given, [targets([0, 0, 20, 4])])
    assert triples(found) == [(0, 2, 0)]
    found = region(radius=9)(given, [targets([3, 0, 11, 4])])
    assert triples(found) == [(0, 1, 0), (0, 2, 0)]


def test_of_several_targets_around_a_point_the_smallest_gets_it():
    given = on_row([[0, 0, 1, 1]] * 4)
    found = region(radius=9)(given, [targets([0, 0, 16, 4], [4, 0, 12, 4])])
    assert triples(found) == [(0, 0, 0), (0, 3, 0), (0, 1, 1), (0, 2, 1)]


def test_a_level_answers_for_its_sizes():
    """The point's largest distance to a side, 6 px, is beyond the first level's sizes."""
    points = torch.cat((point_grid(1, 3, 4), point_grid(1, 1, 8)))
    levels = torch.tensor([0, 0, 0, 1])
    given = Predictions(
        torch.zeros(1, 4, 1), torch.zeros(1, 4, 4), points.repeat(1, 2), levels=levels
    )
    match = region(radius=9, level_sizes=[(-1, 5), (5, math.inf)])
    assert triples(match(given, [targets([0, 0, 12, 8])])) == [(0, 3, 0)]
    assert triples(match(given, [targets([0, 0, 5, 4])])) == [(0, 0, 0)]


def test_poto_matches_one_to_one_by_greatest_total_quality():
    """Greedy would give sample 1 to target 0 (IoU 1) and nothing to target 1: 1 < 0.5^0.8 + 0.8."""
    given = on_row([[0, 0, 4, 4], [0, 0, 8, 4]])
    goals = targets([0, 0, 8, 4], [3, 0, 8, 4])
    assert triples(poto()(given, [goals])) == [(0, 0, 0), (0, 1, 1)]


@pytest.mark.parametrize("name", ALL)
def test_no_targets_give_no_matches(name):
    found = ALL[name](on_row([[0, 0, 4, 4]] * 3, images=2), [targets(), targets()])
    assert len(found) == 0 and found.sample.dtype == torch.int64


@pytest.mark.parametrize("name", ALL)
def test_images_do_not_matter_to_each_other(name):
    boxes = [[0, 0, 16, 4], [0, 0, 8, 4], [4, 0, 12, 4], [8, 0, 16, 4]]
    goals = [targets([0, 0, 16, 4], [4, 0, 13, 4]), targets(), targets([0, 0, 9, 4])]
    together = triples(ALL[name](on_row(boxes, images=3), goals))
    alone = [
        (number, sample, target)
        for number, goal in enumerate(goals)
        for _, sample, target in triples(ALL[name](on_row(boxes), [goal]))
    ]
    assert together == alone and {image for image, _, _ in together} == {0, 2}


@pytest.mark.parametrize("name", ALL)
def test_one_sample_and_many_targets(name):
    """M > N, and fewer samples than k."""
    found = triples(ALL[name](on_row([[0, 0, 4, 4]]), [targets(*[[0, 0, 4, 4]] * 3)]))
    shared = name == "topk"
    assert found == [(0, 0, t) for t in range(3 if shared else 1)]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("box", [[2, 2, 2, 2], [2, 0, 2, 4], [0, 2, 8, 2]])
def test_a_target_without_area_has_no_samples_of_its_own(name, box):
    """No point lies within it; topk and POTO still give it one."""
    given = on_row([[0, 0, 4, 4], [2, 2, 2, 2]])
    assert len(ALL[name](given, [targets(box)])) == (name in ("topk", "poto"))


def test_anchors_count_by_their_centres():
    samples = torch.tensor([[-8.0, -8.0, 12.0, 12.0], [6.0, 0.0, 14.0, 4.0]])
    close(centres(samples), torch.tensor([[2.0, 2.0], [10.0, 2.0]]))
    given = Predictions(
        torch.zeros(1, 2, 1), samples[None], samples, torch.zeros(2, dtype=torch.int64)
    )
    assert triples(alignment()(given, [targets([0, 0, 4, 4])])) == [(0, 0, 0)]


def test_scores_that_are_not_numbers_choose_nothing():
    """The class loss is then NaN, too, and stops the training."""
    given = on_row([[0, 0, 8, 4]] * 2)
    given.logits[:] = math.nan
    assert len(alignment()(given, [targets([0, 0, 8, 4])])) == 0


@pytest.mark.parametrize("topk", [1, 3, 50])
@pytest.mark.parametrize("seed", range(3))
def test_a_batch_is_matched_as_its_images_are(topk, seed):
    """With contested samples, an image without targets, and claims beyond the samples."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(3, 40, 2, generator=generator) * 60
    boxes = torch.cat((corner, corner + 30), dim=2)
    points = point_grid(5, 8, 12).repeat(1, 2)
    logits = torch.randn(3, 40, 4, generator=generator)
    predictions = Predictions(logits, boxes, points, torch.zeros(40, dtype=torch.int64))
    given = [
        Targets(boxes[i, :m] + 4, torch.randint(4, (m,), generator=generator), (60, 96))
        for i, m in enumerate((6, 0, 9))
    ]
    matcher = alignment(topk)
    found = matcher(predictions, given)
    expected = set()
    for image, one in enumerate(given):
        if len(one):
            row, column = matcher.choose(matcher.cost(predictions, image, one))
            expected |= {(image, *pair) for pair in zip(row.tolist(), column.tolist(), strict=True)}
    got = list(zip(*(t.tolist() for t in (found.image, found.sample, found.target)), strict=True))
    assert len(got) == len(expected) and set(got) == expected
    assert [(image, target) for image, _, target in got] == sorted((i, t) for i, _, t in got)
