"""Optimiser, learning-rate curves and clipping, against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.solver import Detector, config, with_gradients
from torch import nn

from onenet.training.optim import build_optimizer, build_scheduler, lr_factor

MULTI_STEP = {
    "BASE_LR": 0.5,
    "MAX_ITER": 100,
    "STEPS": (60, 80),
    "GAMMA": 0.1,
    "WARMUP_ITERS": 10,
    "WARMUP_FACTOR": 0.2,
}


@pytest.mark.parametrize(
    ("iteration", "factor"),
    [(0, 0.2), (5, 0.6), (9, 0.92), (10, 1), (59, 1), (60, 0.1), (79, 0.1), (80, 0.01), (99, 0.01)],
)
def test_warmup_rises_to_one_and_steps_lower_from_their_own_iteration_on(iteration, factor):
    assert lr_factor(config(**MULTI_STEP), iteration) == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize(("iteration", "factor"), [(0, 0.2), (9, 0.2), (10, 1)])
def test_constant_warmup_jumps(iteration, factor):
    cfg = config(**MULTI_STEP, WARMUP_METHOD="constant")
    assert lr_factor(cfg, iteration) == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize(
    ("iteration", "factor"),
    [(0, 1), (25, 0.2 + 0.8 * (1 + math.sqrt(0.5)) / 2), (50, 0.6), (100, 0.2), (130, 0.2)],
)
def test_cosine_falls_to_its_end_and_stays(iteration, factor):
    cfg = config(
        LR_SCHEDULER_NAME="WarmupCosineLR", BASE_LR=0.5, BASE_LR_END=0.1, MAX_ITER=100,
        WARMUP_ITERS=0,
    )  # fmt: skip
    assert lr_factor(cfg, iteration) == pytest.approx(factor, rel=1e-12)


def test_warmup_meets_the_cosine_where_it_ends():
    cfg = config(
        LR_SCHEDULER_NAME="WarmupCosineLR", MAX_ITER=100, WARMUP_ITERS=50, WARMUP_FACTOR=0.1
    )
    assert lr_factor(cfg, 25) == pytest.approx((0.1 + 0.5) / 2)
    assert lr_factor(cfg, 50) == pytest.approx(0.5)


def test_no_warmup_and_no_steps_leave_the_rate_alone():
    cfg = config(WARMUP_ITERS=0, STEPS=(), MAX_ITER=10)
    assert [lr_factor(cfg, i) for i in range(10)] == [1.0] * 10


def test_a_step_within_the_warmup_lowers_its_end():
    cfg = config(**{**MULTI_STEP, "STEPS": (5,)})
    assert lr_factor(cfg, 5) == pytest.approx((0.2 + 0.1) / 2)
    assert lr_factor(cfg, 10) == pytest.approx(0.1)


def test_warmup_of_a_short_run_ends_with_it():
    cfg = config(WARMUP_ITERS=1000, WARMUP_FACTOR=0.5, STEPS=(), MAX_ITER=4)
    assert [lr_factor(cfg, i) for i in range(5)] == [0.5, 0.625, 0.75, 0.875, 1.0]


def test_a_step_at_the_end_lowers_the_rate_that_a_longer_run_goes_on_with():
    cfg = config(WARMUP_ITERS=0, STEPS=(4, 9), GAMMA=0.1, MAX_ITER=4)
    assert [lr_factor(cfg, i) for i in (3, 4)] == pytest.approx([1.0, 0.1], rel=1e-12)


def test_scheduler_sets_the_rate_of_every_iteration_for_every_group():
    cfg = config(**MULTI_STEP, BACKBONE_MULTIPLIER=0.1, OPTIMIZER="SGD")
    optimizer = build_optimizer(cfg, Detector())
    scheduler = build_scheduler(cfg, optimizer)
    for iteration in range(85):
        rates = [group["lr"] for group in optimizer.param_groups]
        factor = lr_factor(cfg, iteration)
        assert rates == pytest.approx([0.05 * factor, 0.5 * factor], rel=1e-12)
        optimizer.step()
        scheduler.step()


def test_scheduler_goes_on_where_its_state_was_saved():
    cfg = config(**MULTI_STEP, OPTIMIZER="SGD")
    optimizer = build_optimizer(cfg, Detector())
    scheduler = build_scheduler(cfg, optimizer)
    for _ in range(7):
        optimizer.step()
        scheduler.step()
    resumed = build_optimizer(cfg, Detector())
    again = build_scheduler(cfg, resumed)
    resumed.load_state_dict(optimizer.state_dict())
    again.load_state_dict(scheduler.state_dict())
    resumed.step()
    again.step()
    assert resumed.param_groups[0]["lr"] == pytest.approx(0.5 * lr_factor(cfg, 8), rel=1e-12)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"WARMUP_METHOD": "constant"},
        {"LR_SCHEDULER_NAME": "WarmupCosineLR", "BASE_LR_END": 0.1},
        {"LR_SCHEDULER_NAME": "WarmupCosineLR", "WARMUP_METHOD": "constant"},
        {"WARMUP_ITERS": 70},
        {"WARMUP_ITERS": 0},
        {"WARMUP_ITERS": 1000},
        {"STEPS": ()},
    ],
)
def test_rates_are_detectron2s(changes):
    solver = pytest.importorskip("detectron2.solver")
    cfg = config(**{**MULTI_STEP, **changes})
    theirs_cfg = cfg.clone()
    theirs_cfg.SOLVER.RESCALE_INTERVAL = False
    theirs_cfg.SOLVER.NUM_DECAYS = 3
    parameter = nn.Parameter(torch.zeros(1))
    theirs = torch.optim.SGD([parameter], lr=cfg.SOLVER.BASE_LR)
    scheduler = solver.build_lr_scheduler(theirs_cfg, theirs)
    for iteration in range(cfg.SOLVER.MAX_ITER):
        ours = cfg.SOLVER.BASE_LR * lr_factor(cfg, iteration)
        assert ours == pytest.approx(theirs.param_groups[0]["lr"], rel=1e-9), iteration
        theirs.step()
        scheduler.step()


@pytest.mark.parametrize(("name", "kind"), [("SGD", torch.optim.SGD), ("ADAMW", torch.optim.AdamW)])
def test_optimizer_is_the_named_one_with_two_groups(name, kind):
    cfg = config(
        OPTIMIZER=name, BASE_LR=0.1, BACKBONE_MULTIPLIER=0.25, WEIGHT_DECAY=0.03, MOMENTUM=0.8
    )
    model = Detector()
    optimizer = build_optimizer(cfg, model)
    assert type(optimizer) is kind
    backbone, rest = optimizer.param_groups
    assert {id(p) for p in backbone["params"]} == {id(p) for p in model.backbone.parameters()}
    assert {id(p) for p in rest["params"]} == {id(p) for p in model.head.parameters()}
    assert backbone["lr"] == pytest.approx(0.025) and rest["lr"] == 0.1
    assert backbone["weight_decay"] == rest["weight_decay"] == 0.03  # biases included
    if name == "SGD":
        assert rest["momentum"] == 0.8


def test_frozen_parameters_are_left_out():
    model = Detector()
    model.backbone[0].requires_grad_(False)
    groups = build_optimizer(config(), model).param_groups
    assert [len(group["params"]) for group in groups] == [2, 2]
    model.backbone.requires_grad_(False)
    (group,) = build_optimizer(config(BASE_LR=0.1, BACKBONE_MULTIPLIER=0.5), model).param_groups
    assert group["lr"] == 0.1 and len(group["params"]) == 2


def test_unknown_optimizer_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="SOLVER.OPTIMIZER must be ADAMW or SGD, got 'ADAM'"):
        build_optimizer(config(OPTIMIZER="ADAM"), Detector())


@pytest.mark.parametrize(
    ("kind", "limit", "p", "first", "second"),
    [
        ("full_model", 6.5, 2.0, [1.5, -2.0], [6.0, 0.0]),
        ("full_model", 14.0, 2.0, [3.0, -4.0], [12.0, 0.0]),
        ("full_model", 6.0, math.inf, [1.5, -2.0], [6.0, 0.0]),
        ("norm", 6.0, 2.0, [3.0, -4.0], [6.0, 0.0]),
        ("norm", 3.5, 1.0, [1.5, -2.0], [3.5, 0.0]),
        ("norm", 2.0, math.inf, [1.5, -2.0], [2.0, 0.0]),
        ("value", 3.5, 2.0, [3.0, -3.5], [3.5, 0.0]),
    ],
)
def test_clipping(kind, limit, p, first, second):
    cfg = config(
        CLIP_GRADIENTS__ENABLED=True,
        CLIP_GRADIENTS__CLIP_TYPE=kind,
        CLIP_GRADIENTS__CLIP_VALUE=limit,
        CLIP_GRADIENTS__NORM_TYPE=p,
    )
    parameters = with_gradients()
    build_optimizer(cfg, parameters).step()
    torch.testing.assert_close(parameters[0].grad, torch.tensor(first), rtol=1e-5, atol=0)
    torch.testing.assert_close(parameters[1].grad, torch.tensor(second), rtol=1e-5, atol=0)
    assert parameters[2].grad is None


def test_no_clipping_unless_enabled():
    parameters = with_gradients()
    build_optimizer(config(CLIP_GRADIENTS__CLIP_VALUE=0.1), parameters).step()
    assert parameters[1].grad.tolist() == [12.0, 0.0]


@pytest.mark.parametrize("name", ["SGD", "ADAMW"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_state_of_another_memory_format_is_resumed(name, layout):
    """Fused optimisers take memory as it comes, whatever it stands for."""
    torch.manual_seed(0)
    first = nn.Conv2d(3, 4, 3)
    start, gradient = first.weight.detach().clone(), torch.randn_like(first.weight)
    moved = []
    for before, fused in ((torch.contiguous_format, False), (torch.channels_last, True)):
        cfg = config(OPTIMIZER=name, BASE_LR=0.1)
        models = [nn.Conv2d(3, 4, 3).to(memory_format=form) for form in (before, layout)]
        optimizers = [build_optimizer(cfg, model, fused=fused) for model in models]
        for model, optimizer in zip(models, optimizers, strict=True):
            model.weight.data.copy_(start)
            model.bias.data.zero_()
            model.weight.grad = torch.empty_like(model.weight).copy_(gradient)
            if optimizer is optimizers[1]:
                optimizer.load_state_dict(optimizers[0].state_dict())
                model.weight.data.copy_(models[0].weight.data)
            optimizer.step()
        moved.append(models[1].weight.detach().clone(memory_format=torch.contiguous_format))
    torch.testing.assert_close(*moved)
