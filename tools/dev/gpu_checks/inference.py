"""OneNet's published models from uint8 images on the card to detections."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from benchmarks.detectors import build_onenet, make_images

from onenet.detector import OneNet
from onenet.inference.optimize import prepare
from onenet.ops.convolution import use_one_kernel

from .check import Check, read

# Images per second that the original publishes, on a V100 at about this size.
ORIGINAL = {
    "onenet.res18.dcn": 109,
    "onenet.res18.nodcn": 138,
    "onenet.res50.dcn": 67,
    "onenet.res50.nodcn": 73,
}
BATCHES = (1, 8, 32, 64)


def batches(check: Check) -> tuple[int, ...]:
    return (1, 2) if check.quick else BATCHES


def row_of(config: Path, variant: str, count: int, ms: float) -> dict[str, Any]:
    """The row of one measurement."""
    speed = 1000 * count / ms
    return {
        "config": config.stem,
        "variant": variant,
        "batch": count,
        "ms": ms,
        "images_per_s": speed,
        "times_original": speed / ORIGINAL[config.stem],
    }


def detection(model: OneNet, check: Check, count: int) -> Callable[[], Any]:
    """Normalise images that are on the device, and find the best boxes."""
    images = make_images(count, check.size, check.device)
    return lambda: model.find(model.batch(images))


def graphs(config: Path, check: Check) -> OneNet:
    """A model in bfloat16 that replays CUDA graphs; on the CPU without them."""
    _, model = build_onenet(config, check.options())
    return prepare(model, precision="bfloat16", cuda_graphs=check.device.type == "cuda")


@torch.inference_mode()
def run(check: Check) -> None:
    for config in check.configs:
        _, model = build_onenet(config, check.options())
        replayed = graphs(config, check)
        variants = {
            "bf16 graph": replayed,
            "float32": prepare(copy.deepcopy(model)),
            "bf16": prepare(model, precision="bfloat16"),
        }
        for count in batches(check):
            for variant, given in variants.items():
                _measure(check, config, variant, count, given)
    for config in check.configs:
        given = graphs(config, check)
        use_one_kernel(given, allowed=False)
        for count in sorted({1, best_batch(check, config)}):
            _measure(check, config, "bf16 graph, more kernels", count, given)


def _measure(check: Check, config: Path, variant: str, count: int, given: OneNet) -> None:
    if check.left < 5:
        return
    with check.going_on(config=config.stem, variant=variant, batch=count):
        ms = check.ms(detection(given, check, count))
        check.record(**row_of(config, variant, count, ms))


def best_batch(check: Check, config: Path) -> int:
    """The batch of most images per second that was measured for a config, or else the largest."""
    rows = [r for r in read(check.out) if r.get("config") == config.stem and "images_per_s" in r]
    rows = [r for r in rows if r["step"] == "inference"]
    best = max(rows, key=lambda r: r["images_per_s"], default=None)
    return best["batch"] if best else batches(check)[-1]
