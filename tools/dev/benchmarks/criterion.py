"""Matching and losses against the dense criterion: time, memory, share of bandwidth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from _shared.timing import Comparison, Run, stages_of
from torch import Tensor, nn

from benchmarks.dense import DenseCriterion
from benchmarks.memory import peaks_mib
from benchmarks.options import Options
from onenet import Criterion, MinCostMatcher, Predictions, Targets
from onenet.assignment.costs import PredictedLocation
from onenet.ops.boxes import decode_ltrb, point_grid

STRIDE = 4
DENSE, OURS, COPY = "dense one-hot", "OneNet", "memory copy"


def onenet_criterion() -> Criterion:
    """OneNet's criterion, with the weights of the paper."""
    return Criterion(matcher=MinCostMatcher(location=PredictedLocation()))


CRITERIA: dict[str, Callable[[], nn.Module]] = {DENSE: DenseCriterion, OURS: onenet_criterion}


def make_predictions(
    images: int, size: Sequence[int], classes: int, device: torch.device
) -> Predictions:
    """Random predictions on a map of stride 4 that require gradients, logits near the focal prior.

    Args:
        images: B.
        size: (H, W) px.
        classes: K.
    """
    height, width = (side // STRIDE for side in size)
    generator = torch.Generator().manual_seed(0)
    points = point_grid(height, width, STRIDE)
    logits = torch.randn(images, len(points), classes, generator=generator) - 4.6
    distances = torch.rand(images, len(points), 4, generator=generator) * 100 + 1
    return Predictions(
        logits=logits.to(device).requires_grad_(),
        boxes=decode_ltrb(points, distances).to(device).requires_grad_(),
        samples=points.repeat(1, 2).to(device),
        levels=torch.zeros(len(points), dtype=torch.int64, device=device),
    )


def make_targets(
    images: int, size: Sequence[int], classes: int, objects: int, device: torch.device
) -> list[Targets]:
    """Random objects with sides from 8 px to half the image's.

    Args:
        images: B.
        size: (H, W) px.
        classes: K.
        objects: M of each image.
    """
    generator = torch.Generator().manual_seed(1)
    whole = torch.tensor([size[1], size[0]], dtype=torch.float32)
    targets = []
    for _ in range(images):
        extent = 8 + torch.rand(objects, 2, generator=generator) * (whole / 2 - 8)
        corner = torch.rand(objects, 2, generator=generator) * (whole - extent)
        labels = torch.randint(classes, (objects,), generator=generator)
        boxes = torch.cat((corner, corner + extent), dim=1)
        targets.append(Targets(boxes, labels, (size[0], size[1])).to(device))
    return targets


def make_work(
    criterion: str,
    *,
    images: int,
    size: Sequence[int],
    classes: int,
    objects: int,
    device: torch.device,
) -> Run:
    """A function that computes losses of random predictions and their gradients once."""
    predictions = make_predictions(images, size, classes, device)
    targets = make_targets(images, size, classes, objects, device)
    compute = CRITERIA[criterion]().to(device)

    # On CUDA the same kernel matches; a hook on the matcher would take its place.
    ends = {"matching": compute.matcher} if device.type == "cpu" else {}

    def work(watch: Any = lambda stage: None) -> None:
        with stages_of(watch, after=ends):
            losses = compute(predictions, targets)
        watch("losses")
        torch.stack(list(losses.values())).sum().backward()
        watch("backward")
        predictions.logits.grad = predictions.boxes.grad = None

    return work


def least_bytes(images: int, size: Sequence[int], classes: int) -> int:
    """Bytes that any criterion must move: float32 logits and boxes in, their gradients out."""
    samples = images * (size[0] // STRIDE) * (size[1] // STRIDE)
    return 2 * 4 * samples * (classes + 4)


def make_copy(count: int, device: torch.device) -> Run:
    """A function that moves ``count`` bytes, half read and half written, at the device's speed."""
    source: Tensor = torch.ones(count // 2, dtype=torch.uint8, device=device)
    copy = torch.empty_like(source)
    return lambda watch: copy.copy_(source)


def run(options: Options) -> list[Comparison]:
    """Time forward and backward for 8 images with 8 objects each and 80 classes."""
    images = 2 if options.quick else 8
    work = {"images": images, "size": options.size, "classes": 80, "objects": 8}
    count = least_bytes(images, options.size, work["classes"])
    runs = {name: make_work(name, **work, device=options.device) for name in CRITERIA}
    height, width = options.size
    found = Comparison(
        title=f"criterion: {images} images of {height}×{width}, {work['classes']} classes, "
        f"{work['objects']} objects each, forward and backward, {options.device}",
        timings=options.time({**runs, COPY: make_copy(count, options.device)}),
        baseline=DENSE,
        notes=[
            f"{COPY}: of the {count / 2**20:.3g} MiB of logits, boxes and their gradients. "
            "bandwidth: the criterion's speed as a share of the copy's, counting only those bytes.",
        ],
    )
    facts: dict[str, dict[str, Any]] = {
        name: {"bandwidth": f"{found.seconds(COPY) / found.seconds(name):.1%}"}
        for name in found.timings
    }
    works = [{"criterion": name, **work} for name in CRITERIA]
    peaks = peaks_mib("benchmarks.criterion:make_work", works, options.device)
    if peaks is not None:
        for name, peak in zip(CRITERIA, peaks, strict=True):
            facts[name] |= {"extra MiB": peak, f"of {DENSE}'s": peak / peaks[0]}
    return [replace(found, facts=facts)]
