"""Maps of costs: the cheapest sample of every place, within a window."""

from __future__ import annotations

import numpy as np

from onenet.ops.boxes import point_grid
from onenet.visualization.cost_map import cost_grid


def test_a_map_of_costs_holds_the_cheapest_sample_of_every_place():
    # Two anchors on each of 2 × 3 places, 4 px apart.
    points = point_grid(2, 3, 4).repeat_interleave(2, dim=0).numpy()
    cost = np.array([5, 4, 1, 2, 0, 0.5, 7, 6, 9, 9, 3, 8])
    grid, covered = cost_grid(points, cost, (0, 0, 12, 8))
    assert cost[grid].tolist() == [[4, 1, 0], [6, 9, 3]]
    assert covered == (0, 0, 12, 8)
    assert np.allclose(points[grid[1, 2]], [10, 6])


def test_a_map_leaves_out_what_the_window_does_not_show():
    points, cost = point_grid(4, 4, 4).numpy(), np.arange(16.0)
    grid, covered = cost_grid(points, cost, (4, 5, 8, 13))
    assert grid.tolist() == [[5], [9], [13]]
    assert covered == (4, 4, 8, 16)


def test_a_map_of_a_single_sample():
    grid, (x1, y1, x2, y2) = cost_grid(np.array([[64.0, 64]]), np.array([1.0]), (10, 10, 90, 80))
    assert grid.tolist() == [[0]]
    assert x1 <= 10 and y1 <= 10 and x2 >= 90 and y2 >= 80
