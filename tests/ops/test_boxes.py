"""Grids, anchors, box coders and GIoU, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torchvision.ops import generalized_box_iou

from onenet.ops.boxes import (
    MAX_LOG_SIZE,
    anchor_grid,
    by_coordinate,
    cell_anchors,
    decode_deltas,
    decode_ltrb,
    encode_deltas,
    encode_ltrb,
    giou,
    point_grid,
)

close = torch.testing.assert_close


def random_boxes(*shape: int, seed: int = 0) -> torch.Tensor:
    corners = torch.rand(*shape, 2, 2, generator=torch.Generator().manual_seed(seed)) * 100
    return torch.cat((corners.amin(dim=-2), corners.amax(dim=-2) + 1), dim=-1)


def test_points_lie_half_a_stride_into_their_cells_row_by_row():
    expected = torch.tensor([[4.0, 4.0], [12.0, 4.0], [20.0, 4.0], [4.0, 12.0], [12.0, 12.0]])
    points = point_grid(2, 3, 8)
    close(points[:5], expected)
    assert points.shape == (6, 2) and points.dtype == torch.float32


def test_half_of_an_odd_stride_is_rounded_down():
    close(point_grid(1, 2, 3), torch.tensor([[1.0, 1.0], [4.0, 1.0]]))


def test_an_empty_map_has_no_points():
    assert point_grid(0, 5, 4).shape == (0, 2)


def test_cell_anchors_run_over_sizes_then_ratios():
    """A ratio is height / width; the area stays size²."""
    expected = [[-4, -2, 4, 2], [-2, -4, 2, 4], [-8, -4, 8, 4], [-4, -8, 4, 8]]
    sizes = [math.sqrt(32), math.sqrt(128)]
    close(cell_anchors(sizes, [0.5, 2.0]), torch.tensor(expected, dtype=torch.float32))


def test_anchors_run_over_rows_columns_and_the_cell():
    cell = torch.tensor([[-1.0, -1.0, 1.0, 1.0], [-2.0, -3.0, 2.0, 3.0]])
    anchors = anchor_grid(cell, 2, 2, 10)
    assert anchors.shape == (8, 4)
    close(anchors[:2], cell)
    close(anchors[2], torch.tensor([9.0, -1.0, 11.0, 1.0]))
    close(anchors[5], torch.tensor([-2.0, 7.0, 2.0, 13.0]))


def test_the_anchors_offset_counts_in_strides():
    cell = torch.tensor([[-1.0, -1.0, 1.0, 1.0]])
    close(anchor_grid(cell, 1, 1, 10, offset=0.5), torch.tensor([[4.0, 4.0, 6.0, 6.0]]))


def test_ltrb_by_hand():
    box = decode_ltrb(torch.tensor([10.0, 20.0]), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    close(box, torch.tensor([9.0, 18.0, 13.0, 24.0]))


def test_ltrb_of_a_point_outside_is_negative():
    sides = encode_ltrb(torch.tensor([0.0, 5.0]), torch.tensor([2.0, 1.0, 4.0, 9.0]))
    close(sides, torch.tensor([-2.0, 4.0, 4.0, 4.0]))


def test_ltrb_coder_is_an_inverse_pair():
    points, boxes = point_grid(3, 4, 16), random_boxes(12)
    close(decode_ltrb(points, encode_ltrb(points, boxes)), boxes)
    pairs = encode_ltrb(points, boxes[:, None])
    close(decode_ltrb(points, pairs), boxes[:, None].expand(-1, 12, 4))


def test_deltas_by_hand():
    """Half a width right, a quarter of the height up, twice as wide, as high as before."""
    anchor = torch.tensor([0.0, 0.0, 4.0, 8.0])
    deltas = torch.tensor([0.5, -0.25, math.log(2.0), 0.0])
    close(decode_deltas(anchor, deltas), torch.tensor([0.0, -2.0, 8.0, 6.0]))


def test_no_deltas_leave_the_anchor():
    anchors = random_boxes(5)
    close(decode_deltas(anchors, torch.zeros(5, 4)), anchors)


def test_delta_coder_is_an_inverse_pair():
    anchors, boxes = random_boxes(50, seed=1), random_boxes(50, seed=2)
    deltas = encode_deltas(anchors, boxes)
    close(decode_deltas(anchors, deltas), boxes, rtol=1e-4, atol=1e-3)
    close(encode_deltas(anchors, decode_deltas(anchors, deltas)), deltas, rtol=1e-4, atol=1e-3)


def test_log_sizes_are_clamped_from_above_only():
    anchor = torch.tensor([0.0, 0.0, 16.0, 16.0])
    wide, tall = decode_deltas(
        anchor, torch.tensor([[0.0, 0.0, 1000.0, -1000.0], [0.0, 0.0, -8.0, MAX_LOG_SIZE]])
    )
    close(wide, torch.tensor([-492.0, 8.0, 508.0, 8.0]))
    close(tall[3] - tall[1], torch.tensor(1000.0))
    close(tall[2] - tall[0], torch.tensor(16 * math.exp(-8.0)), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        pytest.param([1, 2, 5, 9], [1, 2, 5, 9], 1.0, id="identical"),
        # Hull 4 × 1, union 2: 0 - (4 - 2) / 4.
        pytest.param([0, 0, 1, 1], [3, 0, 4, 1], -0.5, id="disjoint"),
        # They share a side: hull and union are equal.
        pytest.param([0, 0, 1, 1], [1, 0, 2, 1], 0.0, id="touching"),
        # Overlap 1, union 7, hull 9.
        pytest.param([0, 0, 2, 2], [1, 1, 3, 3], 1 / 7 - 2 / 9, id="overlapping"),
        pytest.param([0, 0, 4, 4], [1, 1, 3, 3], 0.25, id="within"),
        pytest.param([2, 2, 2, 2], [2, 2, 2, 2], 0.0, id="one point"),
        pytest.param([0, 0, 0, 0], [2, 2, 2, 2], -1.0, id="two points"),
        pytest.param([1, 1, 1, 1], [0, 0, 2, 2], 0.0, id="point within"),
        pytest.param([0, 0, 0, 2], [0, 0, 2, 2], 0.0, id="side of the box"),
        pytest.param([0, 0, 0, 4], [0, 0, 0, 4], 0.0, id="one line"),
        pytest.param([0, 0, 0, 1], [0, 3, 0, 4], 0.0, id="two lines in a row"),
    ],
)
def test_giou_value_and_finite_gradient(a, b, expected):
    a = torch.tensor(a, dtype=torch.float32, requires_grad=True)
    b = torch.tensor(b, dtype=torch.float32, requires_grad=True)
    value = giou(a, b)
    close(value, torch.tensor(expected))
    value.backward()
    assert a.grad.isfinite().all() and b.grad.isfinite().all()


def test_giou_pairs_up_and_broadcasts():
    a, b = random_boxes(6, seed=3), random_boxes(4, seed=4)
    matrix = giou(a[:, None], b[None])
    assert matrix.shape == (6, 4)
    close(giou(a[:4], b), matrix[:4].diagonal())
    assert giou(a[:, None], b[:0][None]).shape == (6, 0)


def test_giou_is_torchvisions_symmetric_and_bounded():
    a, b = random_boxes(40, seed=5), random_boxes(30, seed=6)
    matrix = giou(a[:, None], b[None])
    close(matrix, generalized_box_iou(a, b))
    close(matrix, giou(b[:, None], a[None]).T)
    assert matrix.min() >= -1 and matrix.max() <= 1


def test_by_coordinate_changes_the_order_in_memory_alone():
    boxes = random_boxes(2, 5)
    ordered = by_coordinate(boxes)
    assert torch.equal(ordered, boxes)
    assert all(ordered[..., i].is_contiguous() for i in range(4))
