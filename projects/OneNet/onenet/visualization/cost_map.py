"""Costs of samples as a map to draw."""

from __future__ import annotations

import numpy as np


def cost_grid(
    points: np.ndarray, cost: np.ndarray, window: tuple[float, float, float, float]
) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """The samples of one level as a map: at each place the cheapest of the anchors there.

    Args:
        points: (n, 2) px, a complete grid; anchors repeat places.
        cost: (n,).
        window: xyxy px; cells outside it are left out.

    Returns:
        (h, w) indices of samples, and the xyxy px that their cells cover.
    """
    xs, column = np.unique(points[:, 0].round(2), return_inverse=True)
    ys, row = np.unique(points[:, 1].round(2), return_inverse=True)
    grid = np.zeros((len(ys), len(xs)), np.int64)
    order = np.argsort(-cost, kind="stable")
    grid[row[order], column[order]] = order  # the last write at a place is the cheapest
    x1, y1, x2, y2 = window
    half_x, half_y = _half_step(xs, x2), _half_step(ys, y2)
    columns = np.flatnonzero((xs + half_x > x1) & (xs - half_x < x2))
    rows = np.flatnonzero((ys + half_y > y1) & (ys - half_y < y2))
    xs, ys = xs[columns], ys[rows]
    edges = (xs[0] - half_x, ys[0] - half_y, xs[-1] + half_x, ys[-1] + half_y)
    return grid[np.ix_(rows, columns)], tuple(map(float, edges))


def _half_step(positions: np.ndarray, end: float) -> float:
    """Half the distance between neighbours; a single position takes the whole length."""
    return (positions[1] - positions[0]) / 2 if len(positions) > 1 else end
