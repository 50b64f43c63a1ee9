"""YOLOv1's criterion by hand; test_yolov1_model.py has the rest."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.centernet_example import targets
from helpers.configs import ROOT
from helpers.yolov1_example import cells, total

from onenet.baselines.yolov1 import Cells, YOLOCriterion, keepers
from onenet.structures import TargetBatch
from onenet.training.accumulation import shares

close = torch.testing.assert_close
FILES = ROOT / "configs" / "baselines"
IMAGE = (20, 40)  # height and width: a cell of a 2 × 2 grid is 20 × 10 px


def goal(*boxes, **more):
    return targets(*boxes, size=IMAGE, **more)


def losses(given, *goals, **weights):
    return YOLOCriterion(**weights)(given, list(goals))


# Boxes.


def test_boxes_by_hand():
    """Cell 3 of 2 × 2 begins at (½, ½). A root of -½ is the size ¼, too."""
    given = cells()
    with torch.no_grad():
        given.places[0, 3, 1] = torch.tensor([0.5, 1.0, 0.5, -0.5])
    found = given.boxes()[0]
    close(found[3, 1], torch.tensor([0.75 - 0.125, 1 - 0.125, 0.75 + 0.125, 1 + 0.125]))
    close(found[:, 0, :2], torch.tensor([[0, 0], [0.5, 0], [0, 0.5], [0.5, 0.5]]))


# Losses.


def test_losses_of_one_object_by_hand():
    """A box of 10 × 5 px around (28, 4), in cell 1: (0.4, 0.4) from its corner, roots √¼ and √¼.

    Box 1 of that cell has its size and lies at (0.9, 0.4), 10 px to the right: IoU 0. Box 0 lies at
    (0.4, 0.4) and is twice as wide: IoU ½, so it is responsible.
    """
    given = cells()
    with torch.no_grad():
        given.places[0, 1, 0] = torch.tensor([0.4, 0.4, math.sqrt(0.5), 0.5])
        given.places[0, 1, 1] = torch.tensor([0.9, 0.4, 0.5, 0.5])
        given.confidence[0, 1] = torch.tensor([0.2, 0.6])
        given.confidence[0, 2] = torch.tensor([0.0, -1.0])
        given.classes[0, 1] = torch.tensor([0.3, 0.9])
    found = losses(given, goal([23, 1.5, 33, 6.5], labels=[1]))
    close(found["loss_centre"], torch.tensor(0.0))
    close(found["loss_size"], torch.tensor(5 * (math.sqrt(0.5) - 0.5) ** 2))
    close(found["loss_object"], torch.tensor((0.2 - 0.5) ** 2))
    close(found["loss_empty"], torch.tensor(0.5 * (0.6**2 + 1)))
    close(found["loss_class"], torch.tensor(0.3**2 + 0.1**2))
    total(found).backward()
    assert (given.places.grad.abs() > 1e-4).nonzero().tolist() == [[0, 1, 0, 2]]
    # The wanted IoU is no function of the box to learn from.
    close(given.confidence.grad[0, 1], torch.tensor([2 * (0.2 - 0.5), 0.6]))
    assert given.classes.grad.nonzero().tolist() == [[0, 1, 0], [0, 1, 1]]


def test_the_centres_loss_by_hand():
    """Wanted (0.4, 0.4), predicted (0, 0): 5 · 2 · 0.4²."""
    found = losses(cells(), goal([23, 1.5, 33, 6.5]), coord_weight=5.0)
    close(found["loss_centre"], torch.tensor(5 * 2 * 0.16))
    close(found["loss_size"], torch.tensor(5 * 2 * 0.25))
    twice = losses(cells(), goal([23, 1.5, 33, 6.5]), coord_weight=10.0)
    close(twice["loss_centre"], 2 * found["loss_centre"])


def test_a_perfect_prediction_has_no_loss():
    given = cells(boxes=1)
    with torch.no_grad():
        given.places[0, 1, 0] = torch.tensor([0.4, 0.4, 0.5, 0.5])
        given.confidence[0, 1, 0] = given.classes[0, 1, 1] = 1.0
    close(total(losses(given, goal([23, 1.5, 33, 6.5], labels=[1]))), torch.tensor(0.0))


def test_of_boxes_that_fit_equally_the_first_is_responsible():
    given = cells()
    total(losses(given, goal([23, 1.5, 33, 6.5]))).backward()
    assert given.places.grad[0, 1, 0].all() and not given.places.grad[0, 1, 1].any()


def test_losses_are_means_over_the_objects_of_all_images():
    given = cells(batch=2)
    found = losses(given, goal([23, 1.5, 33, 6.5], [0, 0, 10, 5]), goal([30, 10, 40, 15]))
    # Centres (0.4, 0.4), (¼, ¼) and (¾, ¼).
    wanted = 5 * (2 * 0.16 + 2 / 16 + 10 / 16) / 3
    close(found["loss_centre"], torch.tensor(wanted))


def test_parts_of_a_batch_add_up():
    """As ``SOLVER.ACCUMULATE`` does it; a part may have no object."""
    torch.manual_seed(0)
    given = Cells(torch.rand(2, 4, 2, 4), torch.rand(2, 4, 2), torch.rand(2, 4, 2), 2)
    goals = [goal([23, 1.5, 33, 6.5], [0, 0, 10, 5], [2, 3, 30, 18]), goal()]
    whole = losses(given, *goals)
    weights = shares([3, 0], torch.device("cpu"))
    for name in whole:
        parts = [
            losses(Cells(given.places[i:j], given.confidence[i:j], given.classes[i:j], 2), goals[i])
            for i, j in ((0, 1), (1, 2))
        ]
        close(sum(w * p[name] for w, p in zip(weights, parts, strict=True)), whole[name])


# What is unusual in a target.


def test_keepers_by_hand():
    """Cell 5: areas 2 and 3; cell 1: two of 4; cell 0: alone."""
    cell = torch.tensor([5, 1, 5, 1, 0])
    kept = keepers(cell, torch.tensor([2.0, 4, 3, 4, 0]), 6)
    assert kept.tolist() == [False, True, True, False, True]


def test_of_two_objects_in_a_cell_the_larger_is_learnt():
    """Whatever their order; but both count for the mean."""
    small, large = [26, 3, 30, 5], [20, 0, 38, 10]
    for first, labels in ((small, [0, 1]), (large, [1, 0])):
        other = large if first is small else small
        given = cells()
        both = losses(given, goal(first, other, labels=labels))
        alone = losses(cells(), goal(large, labels=[1]))
        close(both, {name: loss / 2 for name, loss in alone.items()})
        total(both).backward()
        assert (given.classes.grad < 0).nonzero().tolist() == [[0, 1, 1]]


def test_without_targets_all_boxes_are_empty():
    given = cells(batch=2)
    with torch.no_grad():
        given.confidence.fill_(0.5)
    found = losses(given, goal(), goal())
    close(found.pop("loss_empty"), torch.tensor(0.5 * 16 * 0.25))
    assert total(found).item() == 0
    total(losses(given, goal(), goal())).backward()
    assert given.confidence.grad.all() and not given.places.grad.any()


@pytest.mark.parametrize(
    ("box", "cell", "offset"),
    [
        ([30, 10, 50, 30], 3, (1.0, 1.0)),  # its centre lies on the corner of the image
        ([36, 0, 44, 5], 1, (1.0, 0.25)),  # x = W exactly
        ([15, 5, 25, 15], 3, (0.0, 0.0)),  # where four cells meet: the one right and below
        ([-8, -9, 0, 1], 0, (-0.2, -0.4)),
    ],
)
def test_a_centre_on_a_border_counts_for_one_cell(box, cell, offset):
    given = cells()
    found = losses(given, goal(box))
    close(found["loss_centre"], torch.tensor(5 * sum(x * x for x in offset)))
    total(found).backward()
    assert (given.classes.grad < 0).nonzero().tolist() == [[0, cell, 0]]


@pytest.mark.parametrize(
    "box",
    [[8, 6, 8, 6], [8, 6, 20, 6], [20, 14, 8, 6], [-60, -80, -20, -4], [100, 100, 300, 200]],
    ids=["point", "line", "turned round", "outside", "beyond"],
)
def test_degenerate_and_outlying_boxes_are_finite(box):
    given = cells()
    found = losses(given, goal(box, [8, 6, 20, 14]))
    total(found).backward()
    assert all(loss.isfinite() for loss in found.values())
    assert all(x.grad.isfinite().all() for x in (given.places, given.confidence, given.classes))


def test_one_class():
    given = cells(classes=1)
    close(losses(given, goal([23, 1.5, 33, 6.5]))["loss_class"], torch.tensor(1.0))


def test_batches_of_targets_are_taken_as_they_are():
    ready = TargetBatch.of([goal([23, 1.5, 33, 6.5])], torch.device("cpu"))
    close(YOLOCriterion()(cells(), ready), losses(cells(), goal([23, 1.5, 33, 6.5])))
