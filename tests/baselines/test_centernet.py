"""CenterNet: targets and losses by hand; what is unusual in a target."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.centernet_example import maps, targets

from onenet.baselines.centernet import (
    CenterCriterion,
    gaussian_radius,
    heat_loss,
    heat_map,
)

close = torch.testing.assert_close
LN2 = math.log(2)


# The radius: three ways to move a box's corners by r, and the smallest root counts.


def radius_of_three(w, h, t):
    """The smallest root of CornerNet's three cases, as its code solves them."""
    cases = [
        (1, w + h, w * h * (1 - t) / (1 + t)),
        (4, 2 * (w + h), (1 - t) * w * h),
        (4 * t, -2 * t * (w + h), (t - 1) * w * h),
    ]
    return min((b + math.sqrt(b * b - 4 * a * c)) / 2 for a, b, c in cases)


@pytest.mark.parametrize("sides", [(10, 10), (3, 40), (100, 7), (1, 1), (250, 180)])
@pytest.mark.parametrize("overlap", [0.3, 0.5, 0.7, 0.9])
def test_the_radius_is_the_smallest_of_three_cases(sides, overlap):
    found = gaussian_radius(torch.tensor([sides], dtype=torch.float32), overlap)
    assert found.item() == math.floor(radius_of_three(*sides, overlap))


def test_radius_by_hand():
    """10 × 10: √(14² + 84) − 14 = 2.73; 20 × 5: √(17.5² + 84) − 17.5 = 2.25."""
    sizes = torch.tensor([[10.0, 10], [20, 5], [0, 0], [0, 9]])
    assert gaussian_radius(sizes).tolist() == [2, 2, 0, 0]


# The heat map.


def blob(radius):
    """A Gaussian's values on both sides of its centre; sigma is (2 · radius + 1) / 6."""
    sigma = (2 * radius + 1) / 6
    line = torch.tensor([math.exp(-(d**2) / (2 * sigma**2)) for d in range(-radius, radius + 1)])
    return line[:, None] * line


def test_a_gaussian_by_hand():
    """Radius 1, so sigma ½: e⁻² beside the centre, e⁻⁴ on the diagonal, 0 elsewhere."""
    rows, cells = torch.tensor([1]), torch.tensor([[3, 2]])
    heat = heat_map(rows, cells, torch.tensor([1.0]), (2, 5, 6))
    a, b = math.exp(-2), math.exp(-4)
    expected = torch.zeros(2, 5, 6)
    expected[1, 1:4, 2:5] = torch.tensor([[b, a, b], [a, 1, a], [b, a, b]])
    close(heat, expected)


def test_a_gaussian_is_cut_at_the_maps_edge_and_radius_0_is_one_cell():
    heat = heat_map(
        torch.tensor([0, 0]), torch.tensor([[0, 0], [5, 4]]), torch.tensor([2.0, 0.0]), (1, 5, 6)
    )
    expected = torch.zeros(5, 6)
    expected[:3, :3] = blob(2)[2:, 2:]
    expected[4, 5] = 1
    close(heat[0], expected)


def test_where_gaussians_overlap_the_larger_value_stays():
    rows, cells = torch.tensor([0, 0]), torch.tensor([[2, 2], [4, 2]])
    heat = heat_map(rows, cells, torch.tensor([2.0, 1.0]), (1, 5, 8))[0]
    assert heat[2, 2] == heat[2, 4] == 1
    sigmas = (5 / 6, 0.5)
    close(heat[2, 3].item(), max(math.exp(-1 / (2 * sigma**2)) for sigma in sigmas))
    other = heat_map(rows.flip(0), cells.flip(0), torch.tensor([1.0, 2.0]), (1, 5, 8))[0]
    assert torch.equal(heat, other)


def test_no_object_no_heat():
    none = torch.empty(0, dtype=torch.int64)
    assert not heat_map(none, none.reshape(0, 2), torch.empty(0), (2, 3, 4)).any()


# Losses.


def test_heat_loss_by_hand():
    """Logit 0 everywhere: ¼ · ln 2 at a centre and far from it, (1 − ½)⁴ of that at heat ½."""
    heat = torch.tensor([1.0, 0.0, 0.5])
    close(heat_loss(torch.zeros(3), heat), torch.tensor((2 + 1 / 16) / 4 * LN2))
    # Probability ¾ at a centre, at heat 0 and at heat ½.
    logits = torch.full((3,), math.log(3))
    parts = [-math.log(0.75) / 16, -math.log(0.25) * 9 / 16, -math.log(0.25) * 9 / 256]
    close(heat_loss(logits, heat), torch.tensor(sum(parts)))


def test_heat_loss_stays_finite_with_sure_predictions():
    logits = torch.tensor([-200.0, 200.0, -200.0, 200.0], requires_grad=True)
    loss = heat_loss(logits, torch.tensor([1.0, 1.0, 0.0, 0.0]))
    loss.backward()
    close(loss, torch.tensor(400.0))
    assert logits.grad.isfinite().all()


def test_losses_of_one_object_by_hand():
    """A box of 12 × 8 px around (14, 10): 3 × 2 cells, centre (3.5, 2.5), cell (3, 2)."""
    given = maps()
    losses = CenterCriterion(size_weight=0.1, offset_weight=1.0)(given, [targets([8, 6, 20, 14])])
    close(losses["loss_size"], torch.tensor(0.1 * (3 + 2)))
    close(losses["loss_offset"], torch.tensor(0.5 + 0.5))
    # Radius 0: one centre among 2 · 8 · 8 cells, all of probability ½.
    close(losses["loss_heat"], torch.tensor(128 / 4 * LN2))
    sum(losses.values()).backward()
    assert (given.logits.grad < 0).nonzero().tolist() == [[0, 0, 2, 3]]
    assert given.sizes.grad.nonzero().tolist() == [[0, 0, 2, 3], [0, 1, 2, 3]]
    assert given.offsets.grad.nonzero().tolist() == [[0, 0, 2, 3], [0, 1, 2, 3]]


def test_the_gaussian_of_a_large_object_lowers_the_loss_around_its_centre():
    """40 × 40 px are 10 × 10 cells: radius 2."""
    given = maps(classes=1, height=16, width=16)
    loss = CenterCriterion()(given, [targets([12, 12, 52, 52])])["loss_heat"]
    around = ((1 - blob(2)) ** 4).sum().item() + 1
    close(loss, torch.tensor((16 * 16 - 25 + around) / 4 * LN2))


def test_a_perfect_prediction_has_no_box_loss():
    given = maps()
    with torch.no_grad():
        given.sizes[0, :, 2, 3] = torch.tensor([3.0, 2.0])
        given.offsets[0, :, 2, 3] = torch.tensor([0.5, 0.5])
    losses = CenterCriterion()(given, [targets([8, 6, 20, 14])])
    assert losses["loss_size"].item() == losses["loss_offset"].item() == 0


def test_losses_are_means_over_the_objects_of_all_images():
    given = maps(batch=2)
    goals = [targets([8, 6, 20, 14], [8, 6, 20, 14], labels=[0, 1]), targets([0, 0, 4, 8])]
    losses = CenterCriterion()(given, goals)
    close(losses["loss_size"], torch.tensor(0.1 * (5 + 5 + 3) / 3))
    close(losses["loss_heat"], torch.tensor(256 / 4 * LN2 / 3))


def test_two_objects_in_one_cell_both_train_its_size():
    """Of one class: one centre. Sizes 2 × 2 and 1 × 3 cells in cell (2, 2) of a 3 × 4 size."""
    given = maps()
    with torch.no_grad():
        given.sizes[0, :, 2, 2] = torch.tensor([3.0, 4.0])
    goal = targets([6, 6, 14, 14], [8, 4, 12, 16])
    losses = CenterCriterion(size_weight=1.0)(given, [goal])
    close(losses["loss_size"], torch.tensor(((1 + 2) + (2 + 1)) / 2))
    sum(losses.values()).backward()
    assert (given.logits.grad < 0).nonzero().tolist() == [[0, 0, 2, 2]]
    assert given.sizes.grad[0, :, 2, 2].tolist() == [1.0, 1.0]


def test_two_objects_of_different_classes_in_one_cell_are_two_centres():
    given = maps()
    goal = targets([6, 6, 14, 14], [8, 4, 12, 16], labels=[0, 1])
    CenterCriterion()(given, [goal])["loss_heat"].backward()
    assert (given.logits.grad < 0).nonzero().tolist() == [[0, 0, 2, 2], [0, 1, 2, 2]]


def test_without_targets_all_is_background():
    given = maps(batch=2)
    losses = CenterCriterion()(given, [targets(), targets()])
    sum(losses.values()).backward()
    assert losses["loss_size"].item() == losses["loss_offset"].item() == 0
    close(losses["loss_heat"], torch.tensor(256 / 4 * LN2))
    assert (given.logits.grad > 0).all() and not given.sizes.grad.any()


@pytest.mark.parametrize(
    "box",
    [[8, 6, 8, 6], [8, 6, 20, 6], [20, 14, 8, 6], [-60, -80, -20, -4], [100, 100, 300, 200]],
    ids=["point", "line", "turned round", "outside", "beyond"],
)
def test_degenerate_and_outlying_boxes_are_finite(box):
    given = maps()
    losses = CenterCriterion()(given, [targets(box, [8, 6, 20, 14])])
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(m.grad.isfinite().all() for m in (given.logits, given.sizes, given.offsets))


def test_a_centre_on_the_lower_right_edge_counts_for_the_last_cell():
    given = maps()
    CenterCriterion()(given, [targets([24, 24, 40, 40])])["loss_heat"].backward()
    assert (given.logits.grad < 0).nonzero().tolist() == [[0, 0, 7, 7]]
