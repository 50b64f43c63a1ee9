"""OneNet against baselines: whole detectors from images to detections, including any NMS."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

from _shared.timing import Comparison, Run

from benchmarks.baseline_detectors import Detector, detectron2_detectors, torchvision_detectors
from benchmarks.detectors import PLAIN, make_images, onenet_settings
from benchmarks.options import ONNX, Options

CANDIDATES = 1000  # boxes per image that NMS has to process, about as many as after training


def settings_of(detector: Detector, options: Options) -> dict[str, Detector]:
    """A baseline in each of the settings that OneNet is timed in, except ONNX."""
    fused = detector.fused()
    makers: dict[str, Callable[[], Detector]] = {
        "eager": lambda: detector,
        "fused": lambda: fused,
        "bf16": fused.in_bfloat16,
        "compiled": fused.compiled,
        "compiled-bf16": lambda: fused.in_bfloat16().compiled(),
    }
    return {name: makers[name]() for name in options.settings if name in makers}


def run(options: Options) -> list[Comparison]:
    """Time all detectors in every setting, then each in its fastest with work for NMS; batch 1."""
    images = make_images(1, options.size, options.device)
    detectors = {**torchvision_detectors(options), **detectron2_detectors(options)}
    if options.quick:
        detectors = dict(list(detectors.items())[:1])
    # Without ONNX Runtime, which the baselines do not use, and without torchvision's slower DCN.
    shared = replace(options, settings=tuple(s for s in options.settings if s not in ONNX))
    ours: dict[str, dict[str, Run]] = {}
    for config in options.configs:
        settings = onenet_settings(config, shared)
        settings.pop(PLAIN, None)
        ours[config.stem] = {n: partial(of, images) for n, of in settings.items()}
    theirs = {name: settings_of(one, options) for name, one in detectors.items()}
    empty = {name: one.make_up(images, 0) for name, one in detectors.items()}
    full = {name: one.make_up(images, CANDIDATES) for name, one in detectors.items()}

    def bind(name: str, setting: str, made_up: Any) -> Run:
        return partial(theirs[name][setting].run, images, made_up)

    runs = {f"{n}, {s}": run for n, settings in ours.items() for s, run in settings.items()}
    for name, settings in theirs.items():
        runs.update({f"{name}, {s}": bind(name, s, empty[name]) for s in settings})
    height, width = options.size
    title = f"1×3×{height}×{width}, 80 classes, best 100"
    everything = Comparison(
        title=f"baselines in every setting, without candidates for NMS: {title}",
        timings=options.time(runs),
        images=1,
        notes=["fused and compiled: batch norms folded into convolutions, channels_last."],
    )

    def fastest(name: str, settings: Iterable[str]) -> str:
        return min(settings, key=lambda s: everything.seconds(f"{name}, {s}"))

    best: dict[str, Run] = {}
    for name, settings in ours.items():
        setting = fastest(name, settings)
        best[f"{name}, {setting}"] = settings[setting]
    for name, settings in theirs.items():
        setting = fastest(name, settings)
        best[f"{name}, {setting}, no candidates"] = bind(name, setting, empty[name])
        best[f"{name}, {setting}, {CANDIDATES}"] = bind(name, setting, full[name])
    found = Comparison(
        title=f"baselines, each in its fastest setting: {title}",
        timings=options.time(best),
        images=1,
        notes=[
            "Weights are random, so made-up class scores replace those of the baselines: none "
            f"above the threshold, which is their least work, or {CANDIDATES} per image. OneNet's "
            "top-k does not depend on scores.",
        ],
    )
    first = next(iter(best))
    gains = {n: {f"time / {first}": found.seconds(n) / found.seconds(first)} for n in best}
    return [everything, replace(found, facts=gains)]
