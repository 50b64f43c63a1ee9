"""One training step and its parts: float32, with the one-to-many branch, and in bfloat16."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _shared.timing import Comparison, Run, stages_of

from benchmarks.criterion import make_targets
from benchmarks.detectors import make_images
from benchmarks.memory import peaks_mib
from benchmarks.options import Options
from onenet.lightning.build import build_detector
from onenet.lightning.config import load_cfg
from onenet.ops.memory_format import memory_format
from onenet.training.optim import build_optimizer

OBJECTS = 8
BASELINE = "float32"


def candidates(config: Path, options: Options) -> dict[str, list[Any]]:
    """Config overrides of each candidate by its name, the baseline first."""
    precisions = {BASELINE: []}
    if "bf16" in options.settings:
        # SOLVER.AMP.ENABLED also switches to channels_last.
        precisions["bfloat16, channels_last"] = ["SOLVER.AMP.ENABLED", True]
    branches = {"": []}
    if load_cfg(config).MODEL.META_ARCHITECTURE == "OneNet":  # other detectors have none
        branches[", branch"] = ["MODEL.OneNet.AUX.ENABLED", True]
    return {
        precision + branch: [*precisions[precision], *branches[branch]]
        for precision in precisions
        for branch in branches
    }


def make_step(
    config: Path | str,
    opts: Sequence[Any],
    *,
    images: int,
    size: Sequence[int],
    device: torch.device,
) -> Run:
    """A function that trains a config's model, from random weights, by one step on noise.

    Args:
        opts: config overrides.
        images: B.
        size: (H, W) px.
    """
    opts = ["MODEL.DEVICE", str(device), "MODEL.WEIGHTS", "", *opts]
    cfg = load_cfg(config, opts)
    amp = cfg.SOLVER.AMP.ENABLED
    torch.manual_seed(0)
    model = build_detector(cfg, training=True).train()
    autocast = partial(torch.autocast, device.type, torch.bfloat16, enabled=amp)
    with autocast():  # as in the trainer, since the memory format depends on it
        model.to(device, memory_format=memory_format(device))
    optimizer = build_optimizer(cfg, model, fused=True)
    pixels = make_images(images, size, device)
    targets = make_targets(images, size, cfg.MODEL.OneNet.NUM_CLASSES, OBJECTS, device)
    criterion = model.criterion

    def step(watch: Any = lambda stage: None) -> None:
        ends = {"losses": criterion}
        if device.type == "cpu":  # on CUDA the losses' kernel matches, unless it has hooks
            ends = {"matching": criterion.matcher, **ends}
        if getattr(model, "aux_criterion", None) is not None:
            ends["one-to-many"] = model.aux_criterion
        with (
            stages_of(watch, before={"forward": criterion}, after=ends),
            autocast(),
        ):
            losses = model(pixels, targets)
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
    work = {"images": options.train_batch, "size": options.size}
    overrides = candidates(config, options)
    timings = options.time(
        {
            name: make_step(config, opts, **work, device=options.device)
            for name, opts in overrides.items()
        }
    )
    size = "×".join(map(str, (options.train_batch, 3, *options.size)))
    found = Comparison(
        title=f"training step of {config.stem} at {size}, {OBJECTS} objects each, {options.device}",
        timings=timings,
        baseline=BASELINE,
        images=options.train_batch,
        notes=["criterion: share of matching and losses, without their part of backward."],
    )
    facts: dict[str, dict[str, Any]] = {}
    for name in timings:
        spent = found.seconds(name, "matching") + found.seconds(name, "losses")
        facts[name] = {"criterion": f"{spent / found.seconds(name):.1%}"}
    works = [{"config": str(config), "opts": opts, **work} for opts in overrides.values()]
    peaks = peaks_mib("benchmarks.training:make_step", works, options.device)
    if peaks is not None:
        for fact, peak in zip(facts.values(), peaks, strict=True):
            fact |= {"extra MiB": peak, f"of {BASELINE}'s": peak / peaks[0]}
    return replace(found, facts=facts)
