"""Latency and throughput of a config's detector and its stages in every setting."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _shared.timing import Comparison, Stopwatch
from torch import Tensor

from benchmarks.detectors import Detect, make_images, onenet_settings
from benchmarks.options import Options
from onenet.deploy.export import largest_differences
from onenet.structures import Detections

# Settings that compute the same as eager float32, except for rounding.
EXACT = ("fused", "compiled", "onnx")


def run(options: Options) -> list[Comparison]:
    """Time every config at every batch size, with images that are already on the device."""
    found = []
    for config in options.configs:
        settings = onenet_settings(config, options)
        found += [_compare(config, settings, options, count) for count in options.batches]
    return found


def _compare(config: Path, settings: dict[str, Detect], options: Options, count: int) -> Comparison:
    images = make_images(count, options.size, options.device)
    timings = options.time({name: partial(of, images) for name, of in settings.items()})
    size = "×".join(map(str, (count, 3, *options.size)))
    return Comparison(
        title=f"{config.stem} at {size}, {options.device}",
        timings=timings,
        baseline=next(iter(settings)),
        images=count,
        facts=_differences(settings, options.device, images),
        notes=["graph: backbone, head and post-process, which cannot be timed separately."]
        if any("graph" in of for of in timings.values())
        else [],
    )


def _differences(
    settings: dict[str, Detect], device: torch.device, images: Sequence[Tensor]
) -> dict[str, dict[str, Any]]:
    """Largest differences of coordinates and scores from the baseline, for ``EXACT`` settings."""
    results = {
        name: detect(images, Stopwatch(device))
        for name, detect in settings.items()
        if name in EXACT or name == next(iter(settings))
    }
    expected = results.pop(next(iter(settings)))
    size = images[0].shape[-2:]
    facts = {}
    for name, found in results.items():
        pairs = [
            largest_differences(_arrays(one), _arrays(other), size)
            for one, other in zip(expected, found, strict=True)
        ]
        px, score = (max(values) for values in zip(*pairs, strict=True))
        facts[name] = {"Δ px": f"{px:.1e}", "Δ score": f"{score:.1e}"}
    return facts


def _arrays(found: Detections) -> tuple[Any, ...]:
    return tuple(t.cpu().numpy() for t in (found.boxes, found.scores, found.labels))
