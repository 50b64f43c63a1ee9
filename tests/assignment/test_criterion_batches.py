"""Matching and losses of whole batches: as image by image, and without a look at the device."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torchvision.ops import generalized_box_iou

from onenet import Criterion, HungarianMatcher, MinCostMatcher, Predictions, Targets
from onenet.assignment.costs import PredefinedAnchor, PredefinedPoint, PredictedLocation
from onenet.ops import chunks
from onenet.structures import TargetBatch

close = torch.testing.assert_close
LEVEL_SIZES = [(-1.0, 30.0), (30.0, math.inf)]
LOCATIONS = {
    "boxes": PredictedLocation,
    "anchors": PredefinedAnchor,
    "points": PredefinedPoint,
    "levels": lambda: PredefinedPoint(level_sizes=LEVEL_SIZES),
}
# Targets of each image.
COUNTS = {
    "many": [3, 7, 1],
    "some images without": [0, 4, 0],
    "none": [0, 0, 0],
    "more than samples": [45, 2, 60],
}


def random_boxes(generator, *shape):
    centres = torch.rand(*shape, 2, generator=generator) * 100
    halves = torch.rand(*shape, 2, generator=generator) * 30 + 1
    return torch.cat((centres - halves, centres + halves), dim=-1)


def make(counts, samples=40, classes=5, device="cpu", seed=0):
    """Predictions that take gradients, and targets of images of several sizes on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    boxes = random_boxes(generator, len(counts), samples)
    logits = 2 * torch.randn(len(counts), samples, classes, generator=generator) - 2
    levels = torch.randint(2, (samples,), generator=generator)
    predictions = Predictions(
        logits.to(device).requires_grad_(),
        boxes.to(device).requires_grad_(),
        random_boxes(generator, samples).to(device),
        levels.to(device),
    )
    targets = [
        Targets(
            random_boxes(generator, m),
            torch.randint(classes, (m,), generator=generator),
            (100 + 20 * i, 120 - 10 * i),
        )
        for i, m in enumerate(counts)
    ]
    return predictions, targets


def run(criterion, predictions, targets):
    """Losses, and the gradients of logits and boxes."""
    losses = criterion(predictions, targets)
    inputs = (predictions.logits, predictions.boxes)
    return losses, torch.autograd.grad(sum(losses.values()), inputs)


def criterion(location=PredictedLocation, matcher=MinCostMatcher):
    return Criterion(matcher=matcher(location=location()))


def dense_cost(predictions, image, target, location):
    """(N, M) in float64, by the formulas as they stand."""
    p = predictions.logits[image].detach().double().sigmoid()
    focal = 0.25 * (1 - p) ** 2 * -(p + 1e-8).log() - 0.75 * p**2 * -(1 - p + 1e-8).log()
    height, width = target.image_size
    scale = torch.tensor([width, height, width, height])
    goal = target.boxes.double()
    boxes = predictions.boxes[image] if location == "boxes" else predictions.samples
    boxes = boxes.detach().double()
    if location in ("boxes", "anchors"):
        place = 5 * torch.cdist(boxes / scale, goal / scale, p=1)
        place -= 2 * generalized_box_iou(boxes, goal)
    else:
        centres = (goal[:, :2] + goal[:, 2:]) / scale[:2]
        place = 5 * torch.cdist(2 * boxes[:, :2] / scale[:2], centres, p=1)
    if location == "levels":
        points = boxes[:, None, :2]
        size = torch.cat((points - goal[:, :2], goal[:, 2:] - points), dim=-1).amax(dim=-1)
        low, high = torch.tensor(LEVEL_SIZES)[predictions.levels].T[:, :, None]
        place += 9999 * ((size < low) | (size > high))
    return 2 * focal[:, target.labels] + place


@pytest.mark.parametrize("location", LOCATIONS)
def test_costs_are_those_of_the_formulas(location):
    predictions, targets = make([3, 7, 1])
    matcher = MinCostMatcher(location=LOCATIONS[location]())
    for i, target in enumerate(targets):
        cost = matcher.cost(predictions, i, target)
        assert cost.dtype == torch.float32 and not cost.requires_grad
        expected = dense_cost(predictions, i, target, location)
        close(cost.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("limit", [1, 100, 10**6])
@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize("location", LOCATIONS)
def test_a_batch_is_matched_as_its_images_are(monkeypatch, location, counts, limit):
    monkeypatch.setattr(chunks, "_CPU_THREAD", limit)
    predictions, targets = make(counts)
    matches = MinCostMatcher(location=LOCATIONS[location]())(predictions, targets)
    expected = [
        dense_cost(predictions, i, target, location).argmin(dim=0)
        for i, target in enumerate(targets)
        if len(target)
    ]
    assert matches.sample.tolist() == [s for samples in expected for s in samples.tolist()]
    assert matches.image.tolist() == [i for i, m in enumerate(counts) for _ in range(m)]
    assert matches.target.tolist() == [j for m in counts for j in range(m)]


@pytest.mark.parametrize("matcher", [MinCostMatcher, HungarianMatcher])
@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
def test_losses_of_a_batch_are_the_sum_of_its_images(counts, matcher):
    predictions, targets = make(counts)
    compute = criterion(matcher=matcher)
    losses, gradients = run(compute, predictions, targets)
    total = {name: 0.0 for name in losses}
    for i, target in enumerate(targets):
        one = replace(
            predictions,
            logits=predictions.logits[i : i + 1].detach().requires_grad_(),
            boxes=predictions.boxes[i : i + 1].detach().requires_grad_(),
        )
        alone, slopes = run(compute, one, [target])
        share = max(len(target), 1) / max(sum(counts), 1)
        for name, loss in alone.items():
            total[name] += share * loss
        for gradient, slope in zip(gradients, slopes, strict=True):
            close(gradient[i : i + 1], share * slope)
    close(losses, total)


@pytest.mark.parametrize(("samples", "classes"), [(1, 5), (40, 1), (1, 1)])
def test_one_sample_and_one_class(samples, classes):
    predictions, targets = make([3, 0, 2], samples=samples, classes=classes)
    matches = MinCostMatcher(location=PredictedLocation())(predictions, targets)
    assert samples > 1 or matches.sample.tolist() == [0] * 5
    losses, gradients = run(criterion(), predictions, targets)
    assert all(value.isfinite().all() for value in (*losses.values(), *gradients))


def test_logits_may_be_transposed_in_memory():
    predictions, targets = make([3, 0, 2])
    turned = replace(predictions, logits=predictions.logits.detach().mT.contiguous().mT)
    turned.logits.requires_grad_()
    close(run(criterion(), turned, targets), run(criterion(), predictions, targets))


def test_autocast_changes_nothing():
    predictions, targets = make([3, 0, 2])
    expected = run(criterion(), predictions, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = run(criterion(), predictions, targets)
    close(actual, expected)


@pytest.mark.parametrize("poisoned", ["logits", "boxes"])
def test_nan_comes_out_as_a_loss(poisoned):
    predictions, targets = make([3, 0, 2])
    getattr(predictions, poisoned).data[2, 7, 1] = math.nan
    assert not sum(criterion()(predictions, targets).values()).isfinite()


def test_cost_of_no_targets():
    predictions, targets = make([0])
    for location in LOCATIONS.values():
        assert MinCostMatcher(location=location()).cost(predictions, 0, targets[0]).shape == (40, 0)


def test_a_batch_of_targets_stands_in_for_their_list():
    predictions, targets = make([3, 0, 2])
    batch = TargetBatch.of(targets, torch.device("cpu"))
    assert len(batch) == 5 and TargetBatch.of(batch, torch.device("cpu")) is batch
    assert batch.image.tolist() == [0, 0, 0, 2, 2]
    assert batch.counts.tolist() == [3, 0, 2] and batch.starts.tolist() == [0, 3, 3]
    assert batch.scales[[0, 4]].tolist() == [[120, 100, 120, 100], [100, 140, 100, 140]]
    assert torch.equal(batch[1:4].boxes, torch.cat([t.boxes for t in targets])[1:4])
    assert batch[3:].image.tolist() == [2, 2]
    close(run(criterion(), predictions, batch), run(criterion(), predictions, targets))


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize("location", LOCATIONS)
def test_nothing_on_the_device_is_looked_at(location, counts):
    """Tensors on "meta" have no values: whoever asks for one, or a shape made of them, fails."""
    predictions, targets = make(counts, device="meta")
    losses, gradients = run(criterion(LOCATIONS[location]).to("meta"), predictions, targets)
    assert all(loss.shape == () and loss.device.type == "meta" for loss in losses.values())
    assert gradients[0].shape == predictions.logits.shape


def test_looking_at_a_device_without_values_fails():
    predictions, targets = make([3, 0, 2], device="meta")
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        criterion(matcher=HungarianMatcher)(predictions, targets)


def test_torch_compile_takes_it_in_one_graph():
    predictions, targets = make([3, 0, 2], samples=30, classes=3)
    compute = criterion()
    compiled = torch.compile(compute, fullgraph=True, backend="eager")
    close(run(compiled, predictions, targets), run(compute, predictions, targets))
    torch.compiler.reset()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("location", LOCATIONS)
def test_cuda_is_never_waited_for(location):
    predictions, targets = make([3, 0, 2], device="cuda")
    compute = criterion(LOCATIONS[location]).cuda()
    run(compute, predictions, targets)  # the first run makes handles and workspaces
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        losses, gradients = run(compute, predictions, targets)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    given, _ = make([3, 0, 2])
    expected, slopes = run(criterion(LOCATIONS[location]), given, targets)
    close({name: loss.cpu() for name, loss in losses.items()}, expected)
    close([g.cpu() for g in gradients], list(slopes))
