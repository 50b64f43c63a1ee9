"""The trainer's own step in mixed precision: its speed, stages, and the criterion's share."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import torch
from _shared.shapes_dataset import make_dataset
from _shared.timing import TOTAL, Stopwatch, stages_of
from benchmarks.criterion import make_targets
from benchmarks.detectors import make_images
from lightning.fabric import Fabric

from onenet.data.dataset import CocoDetection
from onenet.data.sources import DatasetSource
from onenet.lightning.config import load_cfg
from onenet.lightning.items import TrainItem
from onenet.lightning.trainer import Trainer
from onenet.training.run_folder import RunFolder

from .check import CONFIGS, Check

OBJECTS = 8
TRAIN_NET = CONFIGS.parent / "train_net.py"


def make_trainer(check: Check, config: Path, *, count: int) -> Trainer:
    """A trainer of random weights, whose steps are called from outside."""
    opts = ["MODEL.WEIGHTS", "", "MODEL.DEVICE", check.device.type, "SOLVER.AMP.ENABLED", True]
    opts += ["SOLVER.IMS_PER_BATCH", count, "OUTPUT_DIR", str(check.out / "training"), "SEED", 0]
    cfg = load_cfg(config, opts)
    fabric = Fabric(accelerator=check.device.type, devices=1, precision="bf16-mixed")
    fabric.launch()
    # Its images are not read; a trainer wants to know their number and classes.
    make_dataset(check.out / "shapes", train=8, val=1, size=64, seed=0)
    shapes = DatasetSource(
        "shapes",
        check.out / "shapes" / "annotations" / "instances_train.json",
        check.out / "shapes" / "train",
    )
    trainer = Trainer(
        cfg,
        fabric,
        train_sets=[CocoDetection(shapes)],
        test_sets=[],
        run_folder=RunFolder(check.out / "training"),
    )
    trainer.model.train()
    return trainer


def make_batch(check: Check, count: int, classes: int) -> list[TrainItem]:
    """Noise in page-locked memory, as the loader gives it."""
    cpu = torch.device("cpu")
    images = make_images(count, check.size, cpu)
    targets = make_targets(count, check.size, classes, OBJECTS, cpu)
    items = [
        TrainItem(image, t, i, f"{i}.jpg")
        for i, (image, t) in enumerate(zip(images, targets, strict=True))
    ]
    return [item.pin_memory() for item in items] if check.device.type == "cuda" else items


def run(check: Check) -> None:
    if check.data:
        _train(check)
    for config in [CONFIGS / f"onenet.{n}.yaml" for n in ("res50.dcn", "res50.nodcn", "res18.dcn")]:
        for count in (2,) if check.quick else (16, 32):
            if check.left < 5:
                return
            with check.going_on(config=config.stem, batch=count):
                _measure(check, config, count)
        if check.quick:
            break


def _measure(check: Check, config: Path, count: int) -> None:
    trainer = make_trainer(check, config, count=count)
    model, cuda = trainer.model, check.device.type == "cuda"
    batch = make_batch(check, count, trainer.cfg.MODEL.OneNet.NUM_CLASSES)
    seen: list[Any] = []
    model.criterion.register_forward_pre_hook(lambda _, given: seen.__setitem__(slice(None), given))
    marks: dict[str, Any] = {}
    trainer.optimizer.register_step_pre_hook(lambda *_: marks["watch"]("backward"))

    def step(watch: Stopwatch) -> None:
        marks["watch"] = watch
        # A stopwatch on the matcher would keep matching and losses apart.
        ends = {"matching and losses": model.criterion}
        with stages_of(watch, before={"forward": model.criterion}, after=ends):
            trainer.step(batch)
        watch("update")

    if cuda:
        torch.cuda.reset_peak_memory_stats()
    timings = check.time({"step": step})["step"]
    spent = {stage: 1000 * median(seconds) for stage, seconds in timings.items()}
    peak = torch.cuda.max_memory_allocated() / 2**30 if cuda else None
    share = check.ms(_criterion_alone(model.criterion, *seen)) / spent[TOTAL]
    check.record(
        config=config.stem,
        batch=count,
        ms=spent.pop(TOTAL),
        images_per_s=count / median(timings[TOTAL]),
        **{f"{stage} ms": value for stage, value in spent.items()},
        criterion_share=share,
        peak_gib=peak,
    )


def _criterion_alone(criterion: Any, predictions: Any, targets: Any) -> Any:
    """Matching and losses with their backward, of the predictions of a step."""
    kind = type(predictions)
    logits, boxes = (getattr(predictions, n).detach().requires_grad_() for n in ("logits", "boxes"))
    given = kind(logits, boxes, predictions.samples, predictions.levels)

    def work() -> None:
        losses = criterion(given, targets)
        torch.autograd.grad(sum(losses.values()), (logits, boxes))

    return work


def _train(check: Check) -> None:
    """A training on real images: no NaN, the loss falls."""
    folder, iterations = check.out / "coco", 4 if check.quick else 200
    config = CONFIGS / ("onenet.res18.nodcn.yaml" if check.quick else "onenet.res50.dcn.yaml")
    words = ["--config-file", config, "--engine", "lightning", "--overwrite"]
    words += ["OUTPUT_DIR", folder]
    words += ["DATASETS.TRAIN", f"('{check.data}',)", "DATASETS.TEST", "()", "MODEL.WEIGHTS", "''"]
    words += ["SOLVER.MAX_ITER", iterations, "SOLVER.AMP.ENABLED", True, "SOLVER.IMS_PER_BATCH"]
    words += [2 if check.quick else 16, "DATALOADER.NUM_WORKERS", 0 if check.quick else 12]
    words += ["MODEL.DEVICE", check.device.type, "SOLVER.WARMUP_ITERS", 50]
    if check.quick:
        words += ["INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MAX_SIZE_TRAIN", 96]
        words += ["INPUT.CROP.ENABLED", False]
    done = subprocess.run(
        [sys.executable, str(TRAIN_NET), *map(str, words)],
        capture_output=True,
        text=True,
        timeout=max(check.left, 1),
    )
    rows = []
    if done.returncode == 0:
        lines = (folder / "metrics.json").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
    losses = [r["total_loss"] for r in rows if "total_loss" in r]
    told = (done.stderr.strip().splitlines() or ["no metrics"])[-1][:200]
    check.record(
        what="training on images",
        iterations=iterations,
        losses=losses,
        last=rows[-1] if rows else {},
        **({} if rows else {"error": told}),
    )
