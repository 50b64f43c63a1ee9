"""What the class scores learn: values by hand, gradients, edge cases."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from onenet import Matches, Predictions, Targets
from onenet.assignment.class_losses import (
    FocalLoss,
    MatchabilityLoss,
    Positives,
    QualityFocalLoss,
)
from onenet.assignment.criterion import Criterion
from onenet.ops.focal import focal_loss

close = torch.testing.assert_close
LOSSES = [FocalLoss(), MatchabilityLoss(1.5, 0.0), MatchabilityLoss(1.5, 0.5), QualityFocalLoss()]


def positives(entries, overlaps, target=None, counted=None, targets=None):
    """Pairs whose boxes have these IoUs: parts of a box of 1 × 1 px."""
    count = len(overlaps)
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).repeat(count, 1)
    predicted = boxes.clone()
    predicted[:, 2] = torch.tensor(overlaps, dtype=torch.float32)
    target = list(range(count)) if target is None else target
    return Positives(
        entries=tuple(torch.tensor(entries, dtype=torch.int64).reshape(-1, 3).T),
        counted=torch.tensor([True] * count if counted is None else counted, dtype=torch.bool),
        target=torch.tensor(target, dtype=torch.int64),
        targets=len(set(target)) if targets is None else targets,
        predicted=predicted,
        boxes=boxes,
    )


def negative(p, gamma):
    return -(p**gamma) * math.log(1 - p)


def entropy(p, t):
    return -t * math.log(p) - (1 - t) * math.log(1 - p)


def scores(*values):
    """(1, N, 1) logits of these probabilities."""
    return torch.tensor(values).logit().reshape(1, -1, 1).requires_grad_()


def test_matchability_by_hand():
    """IoU 0.64 is t = 0.512; the other sample is a negative."""
    loss = MatchabilityLoss(1.5, 0.0)(scores(0.3, 0.6), positives([(0, 0, 0)], [0.64]), 0.0)
    assert loss.item() == pytest.approx(entropy(0.3, 0.512) + negative(0.6, 1.5), rel=1e-5)


@pytest.mark.parametrize(
    ("progress", "target"), [(0.0, 1.0), (0.25, 0.5 + 0.5 * 0.125), (0.5, 0.125), (1.0, 0.125)]
)
def test_the_target_falls_from_1_over_the_ramp(progress, target):
    """IoU 0.25 is 0.125 at the end of a ramp of half the training."""
    loss = MatchabilityLoss(1.5, 0.5)(scores(0.3), positives([(0, 0, 0)], [0.25]), progress)
    assert loss.item() == pytest.approx(entropy(0.3, target), rel=1e-5)


def test_quality_by_hand():
    """Two samples of a target: the better learns its best IoU, the other its share of that."""
    given = positives([(0, 0, 0), (0, 1, 0)], [0.5, 0.8], target=[0, 0])
    s = (0.6 * 0.5**6, 0.2 * 0.8**6)
    t = (s[0] / s[1] * 0.8, 0.8)
    loss = QualityFocalLoss(2.0)(scores(0.6, 0.2, 0.4), given, 0.0)
    expected = sum(abs(a - p) ** 2 * entropy(p, a) for a, p in zip(t, (0.6, 0.2), strict=True))
    assert loss.item() == pytest.approx(expected + negative(0.4, 2.0), rel=1e-5)


def test_the_maxima_of_quality_are_each_targets_own():
    both = positives([(0, 0, 0), (0, 1, 0)], [0.5, 0.8], target=[0, 1])
    loss = QualityFocalLoss(2.0)(scores(0.6, 0.2), both, 0.0)
    expected = (0.5 - 0.6) ** 2 * entropy(0.6, 0.5) + (0.8 - 0.2) ** 2 * entropy(0.2, 0.8)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_boxes_that_miss_their_target_learn_0():
    given = positives([(0, 0, 0)], [0.0])
    for loss, gamma in ((MatchabilityLoss(1.5, 0.0), 0.0), (QualityFocalLoss(2.0), 2.0)):
        found = loss(scores(0.3), given, 0.0).item()
        assert found == pytest.approx(negative(0.3, gamma), rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_without_positives_all_are_negatives(loss):
    logits = scores(0.3, 0.6)
    value = loss(logits, positives([], []), 0.0)
    value.backward()
    gamma = 1.5 if isinstance(loss, MatchabilityLoss) else 2.0
    weight = 0.75 if isinstance(loss, FocalLoss) else 1.0
    assert value.item() == pytest.approx(
        weight * (negative(0.3, gamma) + negative(0.6, gamma)), rel=1e-5
    )
    assert (logits.grad > 0).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_a_sample_that_two_targets_share_counts_once(loss):
    """By its last target; both have the same class here."""
    twice = positives([(0, 0, 0)] * 2, [0.3, 0.64], counted=[False, True])
    once = positives([(0, 0, 0)], [0.64])
    close(loss(scores(0.3, 0.6), twice, 0.4), loss(scores(0.3, 0.6), once, 0.4))


@pytest.mark.parametrize("loss", LOSSES[1:])
@pytest.mark.parametrize("value", [-60.0, 60.0])
def test_extreme_logits_give_finite_losses_and_gradients(loss, value):
    logits = torch.full((1, 2, 1), value, requires_grad=True)
    total = loss(logits, positives([(0, 0, 0)], [0.64]), 0.4)
    total.backward()
    assert total.isfinite() and logits.grad.isfinite().all()


def dense(logits, target, gamma, modulated):
    """The plain formula over a target tensor of the logits' size; -1 where negative."""
    p = logits.sigmoid()
    as_negative = p**gamma * F.softplus(logits)
    goal = target.clamp(min=0)
    as_positive = F.binary_cross_entropy_with_logits(logits, goal, reduction="none")
    if modulated:
        as_positive = as_positive * (goal - p).abs() ** gamma
    return torch.where(target < 0, as_negative, as_positive).sum()


@pytest.mark.parametrize("modulated", [False, True])
def test_gradients_are_those_of_the_plain_formula(modulated):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 7, 3, generator=generator)
    sparse, plain = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    given = positives([(0, 2, 1), (1, 6, 0)], [0.64, 0.36])
    target = torch.full_like(logits, -1)
    # The only sample of its target learns its IoU.
    target[0, 2, 1], target[1, 6, 0] = (0.64, 0.36) if modulated else (0.64**1.5, 0.36**1.5)
    loss, gamma = (QualityFocalLoss(2.0), 2.0) if modulated else (MatchabilityLoss(1.5, 0.0), 1.5)
    value, expected = loss(sparse, given, 0.0), dense(plain, target, gamma, modulated)
    close(value, expected)
    value.backward()
    expected.backward()
    close(sparse.grad, plain.grad)


def test_the_focal_loss_is_the_papers():
    logits = torch.randn(1, 5, 2, generator=torch.Generator().manual_seed(0))
    positive = torch.zeros(1, 5, 2, dtype=torch.bool)
    positive[0, 3, 1] = True
    close(FocalLoss()(logits, positives([(0, 3, 1)], [0.2]), 0.0), focal_loss(logits, positive))


def test_the_target_trains_no_box():
    """A criterion whose class loss reads IoU gives the boxes no gradient through it."""
    boxes = torch.tensor([[[0.0, 0.0, 4.0, 4.0]]], requires_grad=True)
    logits = torch.zeros(1, 1, 1, requires_grad=True)
    given = Predictions(logits, boxes, boxes[0].detach(), torch.zeros(1, dtype=torch.int64))
    goal = Targets(torch.tensor([[0.0, 0.0, 4.0, 8.0]]), torch.tensor([0]), (10, 10))
    zero = torch.zeros(1, dtype=torch.int64)
    for loss in LOSSES[1:]:
        criterion = Criterion(matcher=torch.nn.Identity(), class_loss=loss)
        found = criterion.losses(given, [goal], Matches(zero, zero, zero))["loss_ce"]
        assert torch.autograd.grad(found, boxes, allow_unused=True) == (None,)
