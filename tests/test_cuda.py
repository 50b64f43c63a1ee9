"""The method on a card: the original's numbers, and those of float64 on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from helpers import golden
from helpers.cuda import DEVICE, exact, needs_card, never_waiting, on_card
from torchvision.ops import generalized_box_iou

from onenet import Criterion, MinCostMatcher, Predictions, Targets
from onenet.assignment.costs import PredictedLocation
from onenet.inference.postprocess import detect
from onenet.ops.focal import focal_loss
from onenet.structures import Matches

pytestmark = needs_card


@pytest.fixture(autouse=True)
def _exact() -> Iterator[None]:
    with exact():
        yield


def assert_close(actual: torch.Tensor, expected: torch.Tensor, atol: float = 1e-4) -> None:
    torch.testing.assert_close(actual.cpu(), expected, rtol=1e-3, atol=atol)


@pytest.mark.parametrize("name", golden.NAMES)
def test_heads(name):
    arrays = golden.load(f"head_{name}")
    head = golden.head(name, arrays).to(DEVICE)
    inputs = [arrays[f"input{i}"] for i in range(sum(k.startswith("input") for k in arrays))]
    with torch.inference_mode():
        predictions = head([maps.to(DEVICE) for maps in inputs])
    assert_close(predictions.logits, golden.rows(arrays["logits"]), atol=1e-3)
    assert_close(predictions.boxes, golden.rows(arrays["boxes"]), atol=2e-2)  # px


@pytest.mark.parametrize("matcher", golden.MATCHERS)
@pytest.mark.parametrize("location", ["predicted", "predefined"])
@pytest.mark.parametrize("name", golden.NAMES)
def test_costs_matches_losses_and_gradients(name, location, matcher):
    arrays = golden.load(f"loss_{name}_{location}_all_{matcher}")
    predictions, targets = on_card(golden.predictions(arrays)), golden.targets(arrays)
    match = golden.MATCHERS[matcher](location=golden.location_cost(name, location))
    criterion = Criterion(matcher=match).to(DEVICE)
    golden.check(predictions, targets, criterion, arrays, assert_close)


@pytest.mark.parametrize("nms", ["topk", "nms"])
@pytest.mark.parametrize("name", golden.NAMES)
def test_inference(name, nms):
    arrays = golden.load(f"inference_{name}_{nms}")
    found = detect(on_card(golden.predictions(arrays)), 100, 0.5 if nms == "nms" else None)
    for i, detections in enumerate(found):
        assert detections.boxes.device.type == DEVICE.type
        detections = detections.to("cpu")
        assert_close(detections.scores, arrays[f"scores{i}"])
        assert golden.as_set(detections.boxes, detections.labels) == golden.as_set(
            arrays[f"pred_boxes{i}"], arrays[f"classes{i}"]
        )


def scene(counts: list[int], samples: int, classes: int) -> tuple[Predictions, list[Targets]]:
    """Random predictions and targets on the CPU, in float64."""
    generator = torch.Generator().manual_seed(sum(counts))

    def boxes(*shape: int) -> torch.Tensor:
        corner = torch.rand(*shape, 2, generator=generator, dtype=torch.float64) * 200
        size = torch.rand(*shape, 2, generator=generator, dtype=torch.float64) * 90 + 8
        return torch.cat((corner, corner + size), dim=-1)

    logits = torch.randn(len(counts), samples, classes, generator=generator, dtype=torch.float64)
    predictions = Predictions(
        logits - 3, boxes(len(counts), samples), boxes(samples), torch.zeros(samples).long()
    )
    labels = (torch.randint(classes, (m,), generator=generator) for m in counts)
    targets = [
        Targets(boxes(m), label, (300, 320)) for m, label in zip(counts, labels, strict=True)
    ]
    return predictions, targets


def plain_losses(
    logits: torch.Tensor, boxes: torch.Tensor, targets: list[Targets], matches: Matches
) -> dict[str, torch.Tensor]:
    """The weighted losses of given matches, by the formulas as they stand, in float64."""
    positive = torch.zeros_like(logits, dtype=torch.bool)
    trained, goals, scales, last = [], [], [], {}
    triples = (matches.image, matches.sample, matches.target)
    for image, sample, number in zip(*(t.tolist() for t in triples), strict=True):
        height, width = targets[image].image_size
        trained.append(boxes[image, sample])
        goals.append(targets[image].boxes[number])
        scales.append([width, height, width, height])
        last[image, sample] = targets[image].labels[number]
    for (image, sample), label in last.items():
        positive[image, sample, label] = True
    count = max(1, sum(map(len, targets)))
    losses = {"loss_ce": 2 * focal_loss(logits, positive) / count}
    if trained:
        found, goal = torch.stack(trained), torch.stack(goals)
        overlap = generalized_box_iou(found, goal).diagonal()
        distance = (found - goal).abs() / torch.tensor(scales)
        losses["loss_giou"] = 2 * (1 - overlap).sum() / count
        losses["loss_bbox"] = 5 * distance.sum() / count
    return losses


@pytest.mark.parametrize(
    ("counts", "samples"),
    [([3, 7, 1], 3000), ([0, 4, 0], 3000), ([0, 0], 500), ([90, 3], 40)],
    ids=["many", "some images without", "none", "shared samples"],
)
def test_the_criterion_is_that_of_float64_on_the_cpu(counts, samples):
    double, targets = scene(counts, samples, classes=20)
    single = replace(double, **{n: getattr(double, n).float() for n in ("logits", "boxes")})
    single = replace(single, samples=single.samples.float())
    rounded = [replace(target, boxes=target.boxes.float()) for target in targets]
    compute = Criterion(matcher=MinCostMatcher(location=PredictedLocation()))
    matches = compute.matcher(single, rounded)
    logits, boxes = double.logits.requires_grad_(), double.boxes.requires_grad_()
    expected = plain_losses(logits, boxes, targets, matches)
    slopes = torch.autograd.grad(sum(expected.values()), (logits, boxes), allow_unused=True)

    given, compute = on_card(single), compute.to(DEVICE)
    for warm in (False, True):  # the first call makes handles and workspaces
        inputs = given.logits.requires_grad_(), given.boxes.requires_grad_()
        with never_waiting() if warm else nullcontext():
            found = compute(given, rounded)
            gradients = torch.autograd.grad(sum(found.values()), inputs)
    same = compute.matcher(given, rounded)
    assert torch.equal(same.sample.cpu(), matches.sample)
    if counts[0] > samples:
        assert len(set(zip(same.image.tolist(), same.sample.tolist(), strict=True))) < len(same)
    for name, loss in expected.items():
        torch.testing.assert_close(found[name].double().cpu(), loss, rtol=1e-4, atol=1e-5)
    for gradient, slope in zip(gradients, slopes, strict=True):
        expected_slope = torch.zeros_like(gradient.cpu()).double() if slope is None else slope
        torch.testing.assert_close(gradient.double().cpu(), expected_slope, rtol=1e-3, atol=1e-5)
