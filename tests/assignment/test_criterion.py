"""Losses: values by hand, gradients, edge cases, and the mean over processes."""

from __future__ import annotations

import math

import pytest
import torch
import torch.distributed as dist
from helpers.matchers import Fixed

from onenet import Criterion, Matches, Predictions, Targets
from onenet.assignment.criterion import last_of_each_sample, mean_targets
from onenet.ops.focal import sparse_focal_loss

close = torch.testing.assert_close
TERMS = {"loss_ce", "loss_giou", "loss_bbox"}


def predictions(boxes, classes=2, dtype=torch.float32):
    boxes = torch.tensor(boxes, dtype=torch.float32, requires_grad=True)
    logits = torch.zeros(*boxes.shape[:2], classes, dtype=dtype, requires_grad=True)
    levels = torch.zeros(boxes.shape[1], dtype=torch.int64)
    return Predictions(logits, boxes, boxes[0].detach(), levels)


def targets(*boxes, labels=None, size=(10, 20)):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    labels = [0] * len(boxes) if labels is None else labels
    return Targets(boxes, torch.tensor(labels, dtype=torch.int64), size)


NONE = (torch.empty(0, dtype=torch.int64),) * 3


def test_last_of_each_sample():
    """Samples of different images differ; the last of equal ones stands for all of them."""
    image, sample = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([5, 7, 5, 5, 6])
    matches = Matches(image, sample, torch.tensor([0, 1, 2, 0, 1]))
    assert last_of_each_sample(matches, (2, 8)).tolist() == [2, 1, 2, 3, 4]
    assert last_of_each_sample(Matches(*NONE), (2, 8)).shape == (0,)


def test_box_losses_by_hand():
    """20 × 10 image: shifts of 2, 1, 4 and 3 px are 2/20 + 1/10 + 4/20 + 3/10."""
    given = predictions([[[0, 0, 1, 1], [2, 1, 6, 4]]])
    losses = Criterion(matcher=Fixed((0, 1, 0)), l1_weight=1.0, giou_weight=1.0)(
        given, [targets([0, 0, 10, 7])]
    )
    close(losses["loss_bbox"], torch.tensor(0.7))
    close(losses["loss_giou"], torch.tensor(1 - 12 / 70))


def test_each_image_is_normalised_by_its_own_size():
    given = predictions([[[0, 0, 4, 2]], [[0, 0, 4, 2]]])
    goals = [targets([0, 0, 8, 4], size=(10, 10)), targets([0, 0, 8, 4], size=(20, 40))]
    criterion = Criterion(matcher=Fixed((0, 0, 0), (1, 0, 0)), l1_weight=1.0)
    expected = (4 / 10 + 2 / 10 + 4 / 40 + 2 / 20) / 2
    close(criterion(given, goals)["loss_bbox"], torch.tensor(expected))


def test_weights_and_normaliser():
    """Three targets in all: every loss is a third of weight × sum."""
    given = predictions([[[0, 0, 2, 2], [3, 3, 5, 5]], [[0, 0, 4, 4], [0, 0, 1, 1]]])
    goals = [targets([0, 0, 3, 3], [3, 3, 6, 6]), targets([1, 0, 4, 4])]
    matcher = Fixed((0, 0, 0), (0, 1, 1), (1, 0, 0))
    criterion = Criterion(matcher=matcher, class_weight=3.0, l1_weight=7.0, giou_weight=0.5)
    weighted = criterion(given, goals)
    plain = criterion.losses(given, goals, matcher.matches)
    assert set(weighted) == set(plain) == TERMS
    for name, weight in (("loss_ce", 3.0), ("loss_bbox", 7.0), ("loss_giou", 0.5)):
        close(weighted[name], weight * plain[name] / 3)
        assert weighted[name].dtype == torch.float32 and weighted[name].shape == ()


def test_targets_of_a_shared_sample_both_train_its_box_and_the_last_gives_its_class():
    given = predictions([[[2, 2, 6, 6]]], classes=3)
    goal = targets([0, 2, 6, 6], [2, 2, 6, 9], labels=[0, 2], size=(10, 10))
    losses = Criterion(matcher=Fixed((0, 0, 0), (0, 0, 1)))(given, [goal])
    sum(losses.values()).backward()
    # Gradient descent raises the class 2 alone, and moves the left side and the bottom.
    assert (given.logits.grad[0, 0] < 0).tolist() == [False, False, True]
    alone = torch.zeros(1, 1, 3, requires_grad=True)
    expected = sparse_focal_loss(alone, tuple(torch.tensor([[0], [0], [2]])))
    close(losses["loss_ce"], 2.0 * expected / 2)
    assert given.boxes.grad[0, 0, 0] > 0 and given.boxes.grad[0, 0, 3] < 0


def test_without_targets_box_losses_and_their_gradients_are_0():
    given = predictions([[[0, 0, 2, 2]], [[1, 1, 1, 1]]])
    losses = Criterion(matcher=Fixed())(given, [targets(), targets()])
    assert losses["loss_bbox"].item() == 0 and losses["loss_giou"].item() == 0
    # Four negatives of logit 0, normaliser 1, weight 2.
    close(losses["loss_ce"], torch.tensor(2 * 4 * 0.75 / 4 * math.log(2)))
    sum(losses.values()).backward()
    assert torch.equal(given.boxes.grad, torch.zeros_like(given.boxes))
    assert (given.logits.grad > 0).all()


def test_a_target_without_a_match_counts_as_nothing_but_in_the_normaliser():
    given = predictions([[[0, 0, 2, 2]]])
    goal = targets([0, 0, 2, 2], [5, 5, 9, 9])
    losses = Criterion(matcher=Fixed((0, 0, 0)))(given, [goal])
    close(losses["loss_giou"], torch.tensor(0.0))
    close(losses["loss_ce"], torch.tensor(2 * (0.25 + 0.75) / 4 * math.log(2) / 2))


@pytest.mark.parametrize("box", [[3, 3, 3, 3], [3, 0, 3, 8]])
@pytest.mark.parametrize("predicted", [[3, 3, 3, 3], [0, 0, 6, 6], [3, 0, 3, 8], [5, 5, 5, 9]])
def test_targets_without_area_give_finite_losses_and_gradients(box, predicted):
    given = predictions([[predicted]])
    losses = Criterion(matcher=Fixed((0, 0, 0)))(given, [targets(box)])
    total = sum(losses.values())
    total.backward()
    assert total.isfinite() and given.boxes.grad.isfinite().all()


def test_bfloat16_logits_give_float32_losses():
    low, high = (predictions([[[0, 0, 2, 2]]], dtype=d) for d in (torch.bfloat16, torch.float32))
    criterion = Criterion(matcher=Fixed((0, 0, 0)))
    goal = [targets([0, 0, 2, 3])]
    ours, expected = criterion(low, goal), criterion(high, goal)
    assert {loss.dtype for loss in ours.values()} == {torch.float32}
    close(ours, expected)
    ours["loss_ce"].backward()
    assert low.logits.grad.dtype == torch.bfloat16


def test_mean_targets_of_one_process():
    device = torch.device("cpu")
    assert mean_targets(0, device).item() == 1
    assert mean_targets(3, device).item() == 3
    assert mean_targets(0, device).dtype == torch.float32


@pytest.mark.parametrize(("others", "mean"), [(4, 2.5), (0, 1.0)])
def test_mean_targets_is_that_of_all_processes(monkeypatch, others, mean):
    """One target here, ``others`` in the other of two processes; the mean is at least 1."""
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", lambda count: count.add_(others))
    assert mean_targets(1, torch.device("cpu")).item() == mean
