"""torchvision's detectors and OneNet in one process, each in the same settings."""

from __future__ import annotations

from functools import partial

import torch
from _shared.timing import TOTAL
from benchmarks.baseline_detectors import torchvision_detectors
from benchmarks.detectors import make_images

from .check import CONFIGS, Check
from .inference import detection, graphs

CANDIDATES = 1000  # boxes of each image that NMS has to process, about as many as after training
NAMES = ("torchvision RetinaNet R50-FPN", "torchvision FCOS R50-FPN")


def run(check: Check) -> None:
    counts = (1,) if check.quick else (1, 8)
    half = graphs(CONFIGS / "onenet.res50.nodcn.yaml", check)
    for count in counts:
        with check.going_on(detector="OneNet", batch=count), torch.inference_mode():
            ms = check.ms(detection(half, check, count))
            _record(check, "OneNet R50", "bf16 graph", count, ms)
    found = torchvision_detectors(check.options())
    for name in NAMES:
        detector = found[name].fused()
        kinds = {"float32": detector, "bf16": detector.in_bfloat16()}
        for count in counts:
            images = make_images(count, check.size, check.device)
            made_up = found[name].make_up(images, CANDIDATES)
            for kind, one in kinds.items():
                if check.left < 3:
                    return
                with check.going_on(detector=name, setting=kind, batch=count):
                    work = partial(one.run, images, made_up)
                    _record(check, name, kind, count, _ms(check, work))
    for name in NAMES:  # last, since they may take the rest of the time
        one = found[name].fused().in_bfloat16().compiled()
        for count in counts:
            if check.left < 15 and not check.quick:
                return
            images = make_images(count, check.size, check.device)
            with check.going_on(detector=name, setting="bf16 compiled", batch=count):
                work = partial(one.run, images, found[name].make_up(images, CANDIDATES))
                _record(check, name, "bf16 compiled", count, _ms(check, work))


def _ms(check: Check, work: partial) -> float:
    seconds = sorted(check.time({"": lambda watch: work(watch)})[""][TOTAL])
    return 1000 * seconds[len(seconds) // 2]


def _record(check: Check, name: str, kind: str, count: int, ms: float) -> None:
    check.record(detector=name, setting=kind, batch=count, ms=ms, images_per_s=1000 * count / ms)
