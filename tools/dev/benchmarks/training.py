"""One training step and its parts: float32 against bfloat16 with channels_last."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from _shared.timing import Comparison, Run, Stopwatch, stages_of

from benchmarks.criterion import make_targets
from benchmarks.detectors import make_images
from benchmarks.options import Options
from onenet.lightning.build import build_detector
from onenet.lightning.config import load_cfg
from onenet.ops.memory_format import memory_format
from onenet.training.optim import build_optimizer

OBJECTS = 8
# Values of SOLVER.AMP.ENABLED, which also switches to channels_last.
SETTINGS = {"float32": False, "bfloat16, channels_last": True}


def make_step(config: Path, amp: bool, options: Options) -> Run:
    """A function that trains a config's model, from random weights, by one step on noise."""
    opts = ["MODEL.DEVICE", str(options.device), "MODEL.WEIGHTS", "", "SOLVER.AMP.ENABLED", amp]
    cfg = load_cfg(config, opts)
    torch.manual_seed(0)
    model = build_detector(cfg, training=True).train()
    autocast = partial(torch.autocast, options.device.type, torch.bfloat16, enabled=amp)
    with autocast():  # as in the trainer, since the memory format depends on it
        model.to(options.device, memory_format=memory_format(options.device))
    optimizer = build_optimizer(cfg, model, fused=True)
    count, classes = options.train_batch, cfg.MODEL.OneNet.NUM_CLASSES
    images = make_images(count, options.size, options.device)
    targets = make_targets(count, options.size, classes, OBJECTS, options.device)
    criterion = model.criterion

    def step(watch: Stopwatch) -> None:
        ends = {"losses": criterion}
        if options.device.type == "cpu":  # on CUDA the losses' kernel matches, unless it has hooks
            ends = {"matching": criterion.matcher, **ends}
        if getattr(model, "aux_criterion", None) is not None:
            ends["one-to-many"] = model.aux_criterion
        with (
            stages_of(watch, before={"forward": criterion}, after=ends),
            autocast(),
        ):
            losses = model(images, targets)
        optimizer.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        watch("backward")
        optimizer.step()
        watch("optimiser")

    return step


def run(options: Options) -> list[Comparison]:
    """Time a step of every config, with images that are already on the device."""
    return [_compare(config, options) for config in options.configs]


def _compare(config: Path, options: Options) -> Comparison:
    timings = options.time({n: make_step(config, amp, options) for n, amp in SETTINGS.items()})
    size = "×".join(map(str, (options.train_batch, 3, *options.size)))
    found = Comparison(
        title=f"training step of {config.stem} at {size}, {OBJECTS} objects each, {options.device}",
        timings=timings,
        baseline=next(iter(SETTINGS)),
        images=options.train_batch,
        notes=["criterion: share of matching and losses, without their part of backward."],
    )
    shares = {}
    for name in timings:
        spent = found.seconds(name, "matching") + found.seconds(name, "losses")
        shares[name] = {"criterion": f"{spent / found.seconds(name):.1%}"}
    return replace(found, facts=shares)
