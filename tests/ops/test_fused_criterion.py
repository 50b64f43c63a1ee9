"""The Triton kernels of matching and losses give what the plain form gives.

On a machine without a card Triton's interpreter runs them on the CPU (helpers/interpreter.py).
"""

from __future__ import annotations

import copy
import importlib.util
from dataclasses import fields, replace
from importlib.metadata import version
from typing import Any

import pytest
import torch
from helpers.cuda import HERE
from torch import Tensor

from onenet import Criterion, MinCostMatcher, Predictions, Targets
from onenet.assignment.costs import PredefinedAnchor, PredefinedPoint, PredictedLocation
from onenet.assignment.criterion import fused_location, fused_weights
from onenet.ops import fused_criterion
from onenet.ops.focal import focal_loss
from onenet.structures import TargetBatch

# Older interpreters cannot loop to a number that a kernel has read.
_version = version("triton") if importlib.util.find_spec("triton") else "0"
_new = tuple(map(int, _version.split(".")[:2])) >= (3, 8)
pytestmark = pytest.mark.skipif(
    _version == "0" or not (_new or HERE.type == "cuda"),
    reason="needs Triton, which torch for CUDA brings, and without a card version 3.8",
)

LEVELS = [(-1.0, 40.0), (40.0, 90.0), (90.0, 1e5)]
LOCATIONS = {
    "predicted": lambda: PredictedLocation(l1_weight=3.0),
    "anchor": lambda: PredefinedAnchor(giou_weight=1.5),
    "point": lambda: PredefinedPoint(),
    "levels": lambda: PredefinedPoint(level_sizes=LEVELS),
}


def on_card(predictions: Predictions) -> Predictions:
    """The same where the kernels run."""
    moved = {f.name: getattr(predictions, f.name).to(HERE) for f in fields(predictions)}
    return Predictions(**moved)


def scene(counts: list[int], samples: int, classes: int, seed: int = 0) -> tuple[Any, Any]:
    """Random predictions, and targets of images of two sizes."""
    generator = torch.Generator().manual_seed(seed)

    def boxes(*shape: int) -> Tensor:
        corner = torch.rand(*shape, 2, generator=generator) * 100
        return torch.cat((corner, corner + torch.rand(*shape, 2, generator=generator) * 90), -1)

    logits = torch.randn(len(counts), samples, classes, generator=generator) * 3 - 2
    levels = torch.arange(samples) % len(LEVELS)
    predictions = Predictions(logits, boxes(len(counts), samples), boxes(samples), levels)
    targets = [
        Targets(
            boxes(count),
            torch.randint(classes, (count,), generator=generator),
            (200, 180) if number % 2 else (150, 190),
        )
        for number, count in enumerate(counts)
    ]
    return predictions, targets


def paper(**options: Any) -> Criterion:
    return Criterion(matcher=MinCostMatcher(location=PredictedLocation()), **options)


def fused(predictions: Predictions, targets: list[Targets], compute: Criterion) -> Tensor:
    """The three losses by the kernels."""
    batch = TargetBatch.of(targets, HERE)
    compute = copy.deepcopy(compute).to(HERE)
    return fused_criterion.fused_losses(
        predictions,
        batch,
        fused_location(compute.matcher.location, predictions),
        fused_weights(compute),
        torch.tensor(float(max(1, len(batch))), device=HERE),
    )


def plain(predictions: Predictions, targets: list[Targets], compute: Criterion) -> Tensor:
    """The three losses by torch's operators, on the CPU."""
    named = compute(replace(predictions, logits=predictions.logits.float()), targets)
    return torch.stack([named[name] for name in compute.weights])


def losses_and_slopes(
    way: Any, predictions: Predictions, targets: list[Targets], compute: Criterion, slope: float
) -> list[Tensor]:
    """Of one of the two ways: the losses, the gradients of logits and boxes."""
    device = HERE if way is fused else torch.device("cpu")
    moved = {f.name: getattr(predictions, f.name).to(device) for f in fields(predictions)}
    given = Predictions(**{name: tensor.detach() for name, tensor in moved.items()})
    inputs = given.logits.requires_grad_(), given.boxes.requires_grad_()
    losses = way(given, targets, compute)
    slopes = torch.autograd.grad(
        losses.sum() * slope, inputs, allow_unused=True, materialize_grads=True
    )
    return [tensor.detach().cpu() for tensor in (losses, *slopes)]


def check(
    predictions: Predictions,
    targets: list[Targets],
    compute: Criterion,
    *,
    slope: float = 1.0,
    rtol: float = 1e-5,
) -> list[Tensor]:
    """Both ways give the same losses and gradients; returns those of the kernels."""
    found, expected = (
        losses_and_slopes(way, predictions, targets, compute, slope) for way in (fused, plain)
    )
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=rtol, atol=1e-6)
    return found


SCENES = {
    "some without": ([3, 0, 5], 150, 7),
    "no targets": ([0, 0], 70, 3),
    "shared samples": ([9, 2], 5, 4),
    "one sample, one class": ([2], 1, 1),
}


@pytest.mark.parametrize(
    ("location", "counts", "samples", "classes"),
    [
        *(("predicted", *scene) for scene in SCENES.values()),
        *((location, *SCENES["some without"]) for location in LOCATIONS if location != "predicted"),
    ],
    ids=[*SCENES, *(location for location in LOCATIONS if location != "predicted")],
)
def test_losses_and_gradients_are_those_of_the_plain_form(location, counts, samples, classes):
    predictions, targets = scene(counts, samples, classes)
    compute = Criterion(matcher=MinCostMatcher(location=LOCATIONS[location]()))
    check(predictions, targets, compute)


def test_more_targets_share_a_sample_than_a_program_looks_at_together(monkeypatch):
    monkeypatch.setattr(fused_criterion, "_TOGETHER", 4)
    predictions, targets = scene([11, 1], 2, 3)
    check(predictions, targets, paper())


@pytest.mark.parametrize("gamma", [0.0, 1.0, 1.5])
def test_other_exponents_and_weights(gamma):
    predictions, targets = scene([4, 3], 90, 5)
    matcher = MinCostMatcher(
        location=PredictedLocation(), class_weight=1.5, alpha=0.4, gamma=gamma or 1.0
    )
    compute = Criterion(
        matcher=matcher, class_weight=0.7, l1_weight=3, giou_weight=4, alpha=0.3, gamma=gamma
    )
    check(predictions, targets, compute, slope=0.25)


def test_without_a_class_cost():
    predictions, targets = scene([4, 3], 90, 5)
    matcher = MinCostMatcher(location=PredictedLocation(), class_weight=0)
    check(predictions, targets, Criterion(matcher=matcher))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_comes_in_and_goes_out(dtype):
    predictions, targets = scene([4, 3], 90, 5)
    predictions = replace(predictions, logits=predictions.logits.to(dtype))
    eps = torch.finfo(dtype).eps
    _, slopes, _ = check(predictions, targets, paper(), slope=1024.0, rtol=eps)
    assert slopes.dtype == dtype


def test_degenerate_boxes_have_the_gradients_of_torch():
    """Boxes without area, one within the other, sides that coincide."""
    predictions, _ = scene([1, 1], 3, 2)
    boxes = torch.tensor(
        [
            [[10.0, 10, 10, 10], [5, 5, 20, 20], [40, 40, 30, 30]],
            [[1, 1, 9, 9], [2, 2, 4, 4], [1, 1, 9, 30]],
        ]
    )
    predictions = replace(predictions, boxes=boxes)
    goals = torch.tensor([[10.0, 10, 10, 10], [5, 5, 20, 20], [30, 30, 40, 40]])
    labels = torch.tensor([0, 1, 1])
    targets = [Targets(goals, labels, (50, 50)), Targets(boxes[1, :1], labels[:1], (50, 60))]
    check(predictions, targets, paper())


def test_a_box_that_is_nan_makes_its_losses_nan():
    """And not another sample a positive, with training going on."""
    predictions, targets = scene([2, 1], 70, 3)
    predictions.boxes[0, 66, 1] = torch.nan
    losses = fused(on_card(predictions), targets, paper())
    assert losses.isnan().tolist() == [False, True, True]
    assert plain(predictions, targets, paper()).isnan().tolist() == [False, True, True]


def test_the_first_of_equal_samples_is_taken():
    predictions, targets = scene([2], 200, 3)
    same = replace(
        predictions,
        logits=predictions.logits[:, :1].expand(-1, 200, -1).contiguous(),
        boxes=predictions.boxes[:, :1].expand(-1, 200, -1).contiguous(),
    )
    _, _, slopes = check(same, targets, paper())
    assert slopes[0, 1:].abs().max() == 0 and slopes[0, 0].abs().max() > 0


def test_the_backward_pass_runs_once():
    predictions, targets = scene([2], 9, 3)
    given = on_card(predictions)
    given.logits.requires_grad_()
    losses = fused(given, targets, paper())
    losses.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        losses.sum().backward()


def test_logits_from_far_below_to_far_above():
    """The derivative keeps its digits at both ends, as float64 has it."""
    x = torch.linspace(-30, 30, 401, device=HERE)
    losses, slope = fused_criterion.negatives(x, 0.75, 2.0, torch.float32)
    exact = x.double().requires_grad_()
    expected = focal_loss(exact, torch.zeros_like(x, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(expected, exact)
    torch.testing.assert_close(losses.sum().double(), expected.detach(), rtol=1e-5, atol=0)
    torch.testing.assert_close(slope.double(), gradient, rtol=1e-5, atol=1e-30)


def test_without_triton_the_log_says_what_it_costs(monkeypatch, caplog):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    find = fused_criterion.kernels.__wrapped__
    with caplog.at_level("WARNING"):
        assert find() is None
    assert "Triton is not installed" in caplog.text and "pip install" in caplog.text


def test_on_the_cpu_and_for_rules_of_your_own_the_plain_form_runs():
    class Other(MinCostMatcher):
        pass

    logits = torch.zeros(1, 3, 2)
    assert not fused_criterion.fits(logits)
    assert paper().can_be_fused()
    assert not Criterion(matcher=Other(location=PredictedLocation())).can_be_fused()
    watched = paper()
    watched.matcher.register_forward_hook(lambda *_: None)
    assert not watched.can_be_fused()
