"""Matching and losses with their backward, against a copy of the bytes that they must move."""

from __future__ import annotations

from collections.abc import Callable

import torch
from benchmarks.criterion import (
    least_bytes,
    make_copy,
    make_predictions,
    make_targets,
    onenet_criterion,
)
from torch.autograd import DeviceType

from onenet.structures import TargetBatch

from .check import Check, captured

CLASSES, OBJECTS = 80, 8


def make_work(images: int, check: Check) -> Callable[[], None]:
    """Losses and gradients of random predictions; a graph takes it: the targets are on the card."""
    predictions = make_predictions(images, check.size, CLASSES, check.device)
    listed = make_targets(images, check.size, CLASSES, OBJECTS, check.device)
    targets = TargetBatch.of(listed, check.device)
    compute, inputs = onenet_criterion().to(check.device), (predictions.logits, predictions.boxes)

    def work() -> None:
        losses = compute(predictions, targets)
        torch.autograd.grad(torch.stack(list(losses.values())).sum(), inputs)

    return work


def run(check: Check) -> None:
    images = 2 if check.quick else 8
    work = make_work(images, check)
    count = least_bytes(images, check.size, CLASSES)
    move = make_copy(count, check.device)
    copy = check.ms(lambda: move(None))
    ways: dict[str, Callable[[], float]] = {
        "events": lambda: check.ms(work),
        "kernels": lambda: _kernels(check, work),
        "graph": lambda: check.ms(captured(work, check.device)),
    }
    check.record(way="copy", ms=copy, gb_per_s=count / copy / 1e6)
    for way, measure in ways.items():
        with check.going_on(way=way):
            ms = measure()
            check.record(way=way, ms=ms, share_of_copy=copy / ms)


def _kernels(check: Check, work: Callable[[], None]) -> float:
    """Milliseconds of all kernels together, without what lies between them."""
    cuda, times = check.device.type == "cuda", 3
    kinds = [torch.profiler.ProfilerActivity.CPU]
    kinds += [torch.profiler.ProfilerActivity.CUDA] * cuda
    work()
    with torch.profiler.profile(activities=kinds) as profile:
        for _ in range(times):
            work()
        if cuda:
            torch.cuda.synchronize()
    if not cuda:
        return sum(e.self_cpu_time_total for e in profile.key_averages()) / 1000 / times
    kernels = [e for e in profile.events() if e.device_type == DeviceType.CUDA]
    check.record(way="kernels", launches=len(kernels) / times)
    return sum(e.time_range.elapsed_us() for e in kernels) / 1000 / times
