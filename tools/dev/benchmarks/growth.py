"""How the criterion's time and memory grow with samples, objects and classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from _shared.timing import TOTAL, Comparison

from benchmarks.criterion import OURS, STRIDE, make_work
from benchmarks.memory import peaks_mib
from benchmarks.options import Options

HEIGHTS = (128, 192, 256, 384, 512, 768, 1024)
OBJECTS = (1, 2, 5, 10, 20, 50, 100, 200, 500)
CLASSES = (1, 3, 10, 30, 80, 200, 500, 1203)


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Exponent p of the power law y = c · x^p, fitted by least squares of logarithms."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def run(options: Options) -> list[Comparison]:
    """Vary N, M and K one at a time, with the others as in training on COCO."""
    least = 4 if options.quick else None
    base = {"criterion": OURS, "images": 2, "size": options.size, "classes": 80, "objects": 8}
    # Sizes of the same aspect ratio as the options' size; N is the number of samples at stride 4.
    ratio = options.size[1] / options.size[0]
    sizes = [(h, 32 * round(h * ratio / 32)) for h in HEIGHTS[:least]]
    axes: dict[str, dict[str, dict[str, Any]]] = {
        "N samples": {str(math.prod(s) // STRIDE**2): {**base, "size": s} for s in sizes},
        "M objects": {str(m): {**base, "objects": m} for m in OBJECTS[:least]},
        "K classes": {str(k): {**base, "classes": k} for k in CLASSES[:least]},
    }
    works = [work for values in axes.values() for work in values.values()]
    peaks = peaks_mib("benchmarks.criterion:make_work", works, options.device)
    memory = iter(peaks or [math.nan] * len(works))
    return [
        _grow(options, axis, values, {x: next(memory) for x in values})
        for axis, values in axes.items()
    ]


def _grow(
    options: Options, axis: str, works: dict[str, dict[str, Any]], peaks: dict[str, float]
) -> Comparison:
    timings = options.time({x: make_work(**w, device=options.device) for x, w in works.items()})
    first = next(iter(works.values()))
    fixed = {
        "N samples": f"{first['classes']} classes, {first['objects']} objects each",
        "M objects": f"{_size(first)}, {first['classes']} classes",
        "K classes": f"{_size(first)}, {first['objects']} objects each",
    }[axis]
    known = not any(map(math.isnan, peaks.values()))
    found = Comparison(
        title=f"criterion against {axis}: {first['images']} images, {fixed}",
        timings={x: {TOTAL: of[TOTAL]} for x, of in timings.items()},
        facts={x: {"extra MiB": peak} for x, peak in peaks.items()} if known else {},
        axis=axis,
    )
    grown = {"time": [found.seconds(x) for x in works]}
    if known and min(peaks.values()) > 0:
        grown["memory"] = list(peaks.values())
    x, half = [float(x) for x in works], len(works) // 2
    notes = [
        f"{what} ∝ {axis[0]}^{slope(x, y):.2f}, in the upper half ^{slope(x[half:], y[half:]):.2f}"
        for what, y in grown.items()
    ]
    return replace(found, notes=notes)


def _size(work: dict[str, Any]) -> str:
    return "×".join(map(str, work["size"]))
