"""The losses of the one-to-many branch: what they are divided by, and their weight."""

from __future__ import annotations

import math

import pytest
import torch
import torch.distributed as dist
from helpers.matchers import Fixed
from torch import nn

from onenet import Criterion, Predictions, Targets
from onenet.assignment.criterion import OneToManyCriterion
from onenet.errors import NonFiniteError

close = torch.testing.assert_close


class Failing(nn.Module):
    def forward(self, predictions, targets):
        raise NonFiniteError("the cost is NaN")


def given():
    boxes = torch.tensor([[[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 8.0, 4.0], [1.0, 1.0, 5.0, 5.0]]])
    logits = torch.zeros(1, 3, 2, requires_grad=True)
    return Predictions(logits, boxes, boxes[0], torch.zeros(3, dtype=torch.int64))


def goal(count=1):
    boxes = torch.tensor([[0.0, 0.0, 8.0, 8.0]]).repeat(count, 1)
    return [Targets(boxes, torch.zeros(count, dtype=torch.int64), (10, 20))]


def test_the_losses_are_over_the_number_of_positives():
    """Three samples of one target: a third of the sums, where OneNet's own would be the sums."""
    matcher = Fixed((0, 0, 0), (0, 1, 0), (0, 2, 0))
    ours, plain = OneToManyCriterion(matcher=matcher), Criterion(matcher=matcher)
    expected = plain(given(), goal())
    for name, loss in ours(given(), goal()).items():
        close(loss, expected[name] / 3)


def test_the_number_is_that_of_all_processes(monkeypatch):
    """Three positives here, five in the other of two processes."""
    matcher = Fixed((0, 0, 0), (0, 1, 0), (0, 2, 0))
    alone = OneToManyCriterion(matcher=matcher)(given(), goal())
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", lambda count: count.add_(5))
    together = OneToManyCriterion(matcher=matcher)(given(), goal())
    for name, loss in together.items():
        close(loss, alone[name] * 3 / 4)


@pytest.mark.parametrize("count", [0, 2])
def test_without_positives_there_is_the_class_loss_alone(count):
    predictions = given()
    losses = OneToManyCriterion(matcher=Fixed())(predictions, goal(count))
    close(losses["loss_ce"], torch.tensor(2 * 6 * 0.75 / 4 * math.log(2)))
    assert losses["loss_giou"].item() == losses["loss_bbox"].item() == 0
    sum(losses.values()).backward()
    assert (predictions.logits.grad > 0).all()


@pytest.mark.parametrize(
    ("fall", "progress", "weight"),
    [
        ((), 0.9, 3.0),
        ((0.0, 1.0), 0.0, 3.0),
        ((0.0, 1.0), 0.25, 2.25),
        ((0.0, 1.0), 1.0, 0.0),
        ((0.5, 0.9), 0.3, 3.0),
        ((0.5, 0.9), 0.7, 1.5),
        ((0.5, 0.9), 0.95, 0.0),
    ],
)
def test_the_weight_is_constant_or_falls_between_two_points_of_the_training(fall, progress, weight):
    matcher = Fixed((0, 0, 0))
    criterion = OneToManyCriterion(matcher=matcher, weight=3.0, fall=fall)
    criterion.progress = progress
    expected = Criterion(matcher=matcher)(given(), goal())
    for name, loss in criterion(given(), goal()).items():
        close(loss, weight * expected[name])


def test_a_cost_that_is_not_finite_makes_every_loss_nan():
    losses = OneToManyCriterion(matcher=Failing(), weight=0.5)(given(), goal())
    assert set(losses) == {"loss_ce", "loss_giou", "loss_bbox", "cost"}
    assert all(loss.isnan() for loss in losses.values())
