"""Figures show what they should, recognised by its colours."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from onenet.assignment.explain import Assignment
from onenet.ops.boxes import point_grid
from onenet.structures import Detections, Targets
from onenet.visualization import paper_figures
from onenet.visualization.paper_figures import draw_assignments, draw_duplicates, draw_training

NAMES = ["circle", "square"]
IMAGE = np.full((48, 64, 3), 90, np.uint8)


def count(picture, color):
    """Number of pixels with nearly a colour, "#rrggbb"."""
    wanted = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])
    return int((np.abs(picture.astype(int) - wanted).max(axis=2) < 12).sum())


@pytest.fixture
def assignment():
    """Two objects on 6 × 8 points."""
    points = point_grid(6, 8, 8)
    torch.manual_seed(0)
    boxes = torch.tensor([[8.0, 8, 40, 40], [44, 4, 60, 20]])
    return Assignment(
        targets=Targets(boxes, torch.tensor([0, 1]), (48, 64)),
        samples=torch.cat((points, points), dim=1),
        levels=torch.zeros(48, dtype=torch.int64),
        positives=torch.tensor([10, 14]),
        by_location=torch.tensor([18, 14]),
        terms={"class": torch.randn(48, 2), "L1": torch.rand(48, 2)},
    )


def test_both_kinds_of_positives_are_drawn(assignment):
    picture = draw_assignments([IMAGE], [assignment], NAMES, [0])
    assert picture.dtype == np.uint8 and picture.shape[2] == 3
    assert count(picture, paper_figures._POSITIVE["color"]) > 100
    assert count(picture, paper_figures._BY_LOCATION["color"]) > 100
    without = replace(assignment, positives=torch.tensor([-1, -1]))
    fewer = draw_assignments([IMAGE], [without], NAMES, [0])
    stars = [count(p, paper_figures._POSITIVE["color"]) for p in (picture, fewer)]
    assert 0 < stars[1] < stars[0] / 3  # only that in the legend


def test_queries_are_points_of_their_costs_colours(assignment):
    """Neither a map of costs nor a positive by location, which queries do not have."""
    torch.manual_seed(0)
    samples = torch.rand(48, 2).repeat(1, 2) * 60
    queries = replace(assignment, samples=samples, by_location=None)
    picture = draw_assignments([IMAGE], [queries], NAMES, [0])
    assert count(picture, paper_figures._POSITIVE["color"]) > 100
    assert count(picture, paper_figures._BY_LOCATION["color"]) == 0
    # The grey image shows between the points, where a map would cover it.
    with_map = draw_assignments([IMAGE], [assignment], NAMES, [0])
    assert count(picture, "#5a5a5a") > count(with_map, "#5a5a5a") + 10_000


def test_every_image_has_a_row_whatever_its_resolution(assignment):
    large = np.repeat(np.repeat(IMAGE, 10, axis=0), 10, axis=1)
    one = draw_assignments([large], [assignment], NAMES, [1])
    two = draw_assignments([IMAGE, large], [assignment] * 2, NAMES, [0, 1])
    assert two.shape[1] == one.shape[1] and two.shape[0] > 1.8 * one.shape[0]


def test_the_object_and_the_level_are_named(assignment):
    two_levels = replace(assignment, levels=(torch.arange(48) >= 40).long())
    assert (
        paper_figures._cost_title(assignment, 1, NAMES) == "cost for object 2, square (bright: low)"
    )
    assert paper_figures._cost_title(two_levels, 1, NAMES).endswith("on level 1 of 2")


def test_moments_of_a_training_show_the_way_and_have_one_size(assignment):
    moved = replace(assignment, positives=torch.tensor([35, 14]))
    first = draw_training([IMAGE], [[assignment]], NAMES, [0], "iteration 100")
    second = draw_training([IMAGE], [[assignment], [moved]], NAMES, [0], "iteration 200")
    jump = draw_training([IMAGE], [[moved]], NAMES, [0], "iteration 200")
    assert first.shape == second.shape
    color = paper_figures._PATH["color"]
    assert count(second, color) > count(jump, color) + 50


def detections(*boxes, labels=None):
    scores = torch.linspace(0.9, 0.5, len(boxes))
    labels = torch.zeros(len(boxes), dtype=torch.int64) if labels is None else torch.tensor(labels)
    return Detections(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), scores, labels)


def test_duplicates_and_misses_have_their_colours():
    truth = Targets(torch.tensor([[10.0, 10, 40, 40]]), torch.tensor([0]), (48, 64))
    kinds = (paper_figures._BEST, paper_figures._DUPLICATE, paper_figures._NOTHING)

    def colors(*found):
        columns = [[f] for f in found]
        picture = draw_duplicates([IMAGE], columns, [truth], NAMES, ["model"] * len(found))
        return picture, [count(picture, kind["edgecolor"]) for kind in kinds]

    nothing, legend = colors(detections())
    one, best = colors(detections([10, 10, 40, 40]))
    assert best[0] > legend[0] + 500 and best[1:] == legend[1:]
    _, both = colors(detections([10, 10, 40, 40], [11, 8, 42, 40]))
    assert both[0] > legend[0] + 500 and both[1] > legend[1] + 200 and both[2] == legend[2]
    _, other = colors(detections([10, 10, 40, 40], labels=[1]))
    assert other[0] == legend[0] and other[1] == legend[1] and other[2] > legend[2]
    pair, _ = colors(detections([10, 10, 40, 40]), detections())
    assert nothing.shape == one.shape and pair.shape[1] == 2 * one.shape[1]
