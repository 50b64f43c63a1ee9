"""What a run refuses to resume from, and the settings that it keeps over what it loads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.solver import Detector, config
from torch import nn
from torch.optim import SGD

from onenet.checkpoints.resume import check_engine, iterations_of, restore
from onenet.errors import CheckpointError
from onenet.training.optim import build_optimizer, build_scheduler, lr_factor

PATH = Path("run") / "model_0000003.pth"


def parts() -> dict:
    model = nn.Linear(2, 1)
    return {"model": model, "optimizer": SGD(model.parameters(), lr=1.0)}


def refused(content: dict) -> str:
    with pytest.raises(CheckpointError) as error:
        restore(parts(), content, PATH)
    return str(error.value)


def test_the_iterations_of_a_checkpoint_that_fits():
    content = {name: part.state_dict() for name, part in parts().items()}
    own = parts()
    assert restore(own, {**content, "iteration": 3}, PATH) == 4
    assert torch.equal(own["model"].weight, content["model"]["weight"])


def test_a_checkpoint_names_the_engine_that_wrote_it():
    for content, engine in (({"trainer": {}}, "detectron2"), ({}, "lightning")):
        check_engine(content, PATH, detectron2=engine == "detectron2")
        with pytest.raises(CheckpointError) as error:
            check_engine(content, PATH, detectron2=engine == "lightning")
        assert f"(--engine {engine}), or start a new run in another OUTPUT_DIR with MODEL" in str(
            error.value
        )


@pytest.mark.parametrize("iteration", [None, "3", 2.0])
def test_weights_alone_are_no_state_of_a_training(iteration):
    with pytest.raises(CheckpointError, match="holds weights, but not the state of a training"):
        iterations_of({"iteration": iteration}, PATH)


def test_an_average_that_the_run_has_not():
    message = refused({"ema": {}, "iteration": 3})
    assert "cannot be resumed with MODEL_EMA.ENABLED False; its run had True" in message


def test_other_shapes():
    other = nn.Linear(3, 1).state_dict()
    message = refused({"model": other, "optimizer": {}, "iteration": 3})
    assert "cannot be resumed with this config" in message and "size mismatch" in message


def run(steps: int, content: dict | None = None, **solver) -> dict:
    """The parts of a training after some steps, with gradients of 1."""
    cfg = config(STEPS=(3, 6), WARMUP_ITERS=2, MAX_ITER=8, **solver)
    torch.manual_seed(0)
    model = Detector()
    optimizer = build_optimizer(cfg, model, fused=True)
    found = {"model": model, "optimizer": optimizer, "scheduler": build_scheduler(cfg, optimizer)}
    if content is not None:
        restore(found, content, PATH)
    for _ in range(steps):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        found["scheduler"].step()
    return {**found, "cfg": cfg}


def saved(found: dict) -> dict:
    names = ("model", "optimizer", "scheduler")
    return {name: found[name].state_dict() for name in names} | {"iteration": 3}


SOLVERS = [
    {"OPTIMIZER": "SGD", "BASE_LR": 0.1, "WEIGHT_DECAY": 0.1, "MOMENTUM": 0.9},
    {"OPTIMIZER": "ADAMW", "BASE_LR": 0.1, "WEIGHT_DECAY": 0.1},
]


@pytest.mark.parametrize("solver", SOLVERS, ids=["sgd", "adamw"])
def test_an_unchanged_run_ends_like_an_uninterrupted_one(solver):
    straight, resumed = run(7, **solver), run(3, saved(run(4, **solver)), **solver)
    for one, other in zip(
        straight["model"].parameters(), resumed["model"].parameters(), strict=True
    ):
        assert torch.equal(one, other)
    groups = [found["optimizer"].state_dict()["param_groups"] for found in (straight, resumed)]
    assert groups[0] == groups[1]
    assert straight["scheduler"].state_dict() == resumed["scheduler"].state_dict()


@pytest.mark.parametrize("solver", SOLVERS, ids=["sgd", "adamw"])
@pytest.mark.parametrize("fused", [True, False])
def test_changed_settings_are_applied_over_the_loaded_state(solver, fused):
    content = saved(run(4, **solver))
    for group in content["optimizer"]["param_groups"]:
        group["fused"] = fused
    changed = {**solver, "BASE_LR": 0.02, "WEIGHT_DECAY": 0.5, "BACKBONE_MULTIPLIER": 0.5}
    found = run(0, content, **changed)
    rate = 0.02 * lr_factor(found["cfg"], 4)
    assert rate == pytest.approx(0.002)  # one step of GAMMA 0.1
    backbone, head = found["optimizer"].param_groups
    assert (backbone["lr"], head["lr"]) == pytest.approx((0.5 * rate, rate))
    assert (backbone["initial_lr"], head["initial_lr"]) == (0.01, 0.02)
    assert backbone["weight_decay"] == head["weight_decay"] == 0.5 and head["fused"] is True
    assert found["scheduler"].get_last_lr() == pytest.approx([0.5 * rate, rate])
    # Rates go on from there: the second step of GAMMA is that of iteration 6.
    found = run(2, content, **changed)
    assert found["scheduler"].get_last_lr() == pytest.approx([0.0001, 0.0002])
    # And they are what moves the weights.
    still = run(2, content, **{**solver, "BASE_LR": 1e-30})["model"].state_dict()
    for name, value in content["model"].items():
        torch.testing.assert_close(still[name], value)


def test_other_steps_are_those_of_the_resumed_schedule():
    content = saved(run(4, OPTIMIZER="SGD", BASE_LR=0.1))
    cfg = config(OPTIMIZER="SGD", BASE_LR=0.1, STEPS=(5,), GAMMA=0.5, WARMUP_ITERS=0, MAX_ITER=9)
    model = Detector()
    optimizer = build_optimizer(cfg, model)
    found = {"model": model, "optimizer": optimizer, "scheduler": build_scheduler(cfg, optimizer)}
    restore(found, content, PATH)
    rates = [optimizer.param_groups[1]["lr"]]
    for _ in range(2):
        optimizer.step()
        found["scheduler"].step()
        rates.append(optimizer.param_groups[1]["lr"])
    assert rates == pytest.approx([0.1, 0.05, 0.05])


def test_momentum_that_was_off_starts_at_zero():
    off = {"OPTIMIZER": "SGD", "BASE_LR": 0.1, "MOMENTUM": 0.0}
    found = run(0, saved(run(4, **off)), **{**off, "MOMENTUM": 0.9})
    states = found["optimizer"].state
    assert len(states) == 6
    assert all(torch.count_nonzero(state["momentum_buffer"]) == 0 for state in states.values())
