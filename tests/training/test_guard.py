"""Steps that leave the model alone where gradients are not finite, and how often they may."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from helpers.solver import Detector, config, with_gradients
from torch import nn

from onenet.training.guard import Guard, ScaledGuard
from onenet.training.optim import build_optimizer


def set_gradients(model: nn.Module, value: float = 2.0, last: float | None = None) -> None:
    """All gradients one value, but for a single one."""
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, value)
    model.head.weight.grad[0, 1] = value if last is None else last


def guard_of(model: nn.Module, tolerated: int = 0, fused: bool = True, **solver: Any) -> Guard:
    cfg = config(BASE_LR=0.1, **solver)
    return Guard(build_optimizer(cfg, model, fused=fused), model, tolerated)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", ["SGD", "ADAMW"])
def test_a_gradient_that_is_not_finite_leaves_the_weights_alone(name, fused):
    model = Detector()
    guard = guard_of(model, 3, fused, OPTIMIZER=name)
    set_gradients(model)
    # 2 · (4 + 2) weights and biases of the backbone, 3 of the head.
    assert guard.step().item() == pytest.approx(2 * math.sqrt(15)) and guard.good
    before = [p.detach().clone() for p in model.parameters()]
    state = copy.deepcopy(guard.optimizer.state_dict()["state"])
    for value in (math.nan, math.inf, 1e30):  # the square of the last is infinite
        set_gradients(model, last=value)
        assert not guard.step().isfinite() and not guard.good
        assert all(map(torch.equal, model.parameters(), before))
        for key, values in guard.optimizer.state_dict()["state"].items():
            assert all(torch.equal(value, state[key][k]) for k, value in values.items())
    set_gradients(model)
    guard.step()
    assert guard.good and not any(map(torch.equal, model.parameters(), before))


@pytest.mark.parametrize(
    ("tolerated", "values", "moves"),
    [
        (0, "..x.", [1, 1, 0, 0]),
        (1, "x.x..", [0, 1, 0, 1, 1]),
        (1, "xx...", [0, 0, 0, 0, 0]),  # nothing changes any more
        (2, "xx.xx.", [0, 0, 1, 0, 0, 1]),
    ],
)
def test_one_more_in_a_row_than_tolerated_ends_all_change(tolerated, values, moves):
    model = Detector()
    guard = guard_of(model, tolerated)
    found = []
    for value in values:
        before = model.head.bias.item()
        set_gradients(model, last=math.nan if value == "x" else None)
        guard.step()
        found.append(int(model.head.bias.item() != before))
        assert guard.good.item() == found[-1]
    assert found == moves


def test_momentum_starts_at_0_where_the_first_step_is_skipped():
    start = Detector()
    moved = []
    for values in ([2.0], [math.nan, 2.0]):
        model = copy.deepcopy(start)
        guard = guard_of(model, 1, OPTIMIZER="SGD")
        for value in values:
            set_gradients(model, value)
            guard.step()
        moved.append(model.head.weight.detach())
    assert torch.equal(*moved) and not torch.equal(moved[0], start.head.weight)


def test_statistics_are_put_back():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1), nn.BatchNorm1d(1, affine=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    guard = Guard(optimizer, model, 1)
    inputs = torch.tensor([[1.0, 2.0], [3.0, 8.0]])
    for scale in (1.0, math.inf, 1.0):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        guard.keep()
        model(inputs * scale).sum().backward()
        guard.step()
        optimizer.zero_grad()
        same = [torch.equal(value, before[name]) for name, value in model.state_dict().items()]
        assert all(same) if scale == math.inf else not any(same[2:5])
    # 0.9 · (0.9 · 0 + 0.1 · 2) + 0.1 · 2, and the same of 5.
    assert model[0].running_mean.tolist() == pytest.approx([0.38, 0.95])
    assert model[0].num_batches_tracked == model[2].num_batches_tracked == 2


def test_a_clipped_gradient_still_tells_its_norm():
    clip = {"ENABLED": True, "CLIP_TYPE": "full_model", "CLIP_VALUE": 6.5}
    parameters = with_gradients()
    guard = guard_of(parameters, **{f"CLIP_GRADIENTS__{key}": v for key, v in clip.items()})
    assert guard.step() == 13
    torch.testing.assert_close(parameters[1].grad, torch.tensor([6.0, 0.0]), rtol=1e-5, atol=0)


def test_a_scaler_that_looks_for_its_scale_is_no_fault():
    model = Detector()
    optimizer = build_optimizer(config(BASE_LR=0.1), model)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    guard = ScaledGuard(optimizer, model, scaler)
    start = model.head.weight.detach().clone()

    def step(value: float) -> float:
        scaler.scale(torch.zeros(()))
        set_gradients(model, scaler.get_scale() * value)
        return guard.step().item()

    assert step(math.inf) == 0.0 and step(math.inf) == 0.0  # from 4 to 2 to 1
    assert not math.isfinite(step(math.inf)) and not guard.good
    assert torch.equal(model.head.weight, start)
    assert step(2.0) == pytest.approx(2 * math.sqrt(15)) and guard.good
    assert not torch.equal(model.head.weight, start)
