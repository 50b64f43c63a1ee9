"""Compiled in bfloat16 at batch 1 and the best: many processes compile, then each is timed alone.

Compiling takes the CPU for minutes and the card for moments, so all models compile at once.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from benchmarks.detectors import build_onenet

from onenet.inference.optimize import prepare

from .check import CONFIGS, Check
from .inference import best_batch, detection, row_of

PROGRAM = Path(__file__).parents[1] / "gpu_check.py"


def run(check: Check) -> None:
    folder = check.out / "compiling"
    folder.mkdir(exist_ok=True)
    work = [(c, n) for c in check.configs for n in sorted({1, best_batch(check, c)})]
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(folder / "cache")}
    environment["TORCHINDUCTOR_COMPILE_THREADS"] = "2"  # of each, as all compile at once
    started = {}
    for config, count in work:
        name = f"{config.stem}-{count}"
        words = ["--out", check.out, "--device", check.device, "--limit", check.left]
        words += ["--step", f"compile {config.stem} {count}", *["--quick"] * check.quick]
        with (folder / f"{name}.log").open("w", encoding="utf-8") as log:
            started[name] = subprocess.Popen(
                [sys.executable, str(PROGRAM), *map(str, words)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
            )
    try:
        _wait(check, folder, started)
        for name in [name for name in started if not _ready(folder, name)]:
            started.pop(name).kill()  # it would disturb the others
            log = (folder / f"{name}.log").read_text(encoding="utf-8").strip().splitlines()
            check.record(model=name, error=(log or ["not compiled in time"])[-1][:200])
        for name, process in started.items():
            if check.left > 2:
                (folder / f"{name}.go").touch()
                process.wait(timeout=max(check.left, 1))
    finally:
        for process in started.values():
            process.kill()


def _ready(folder: Path, name: str) -> bool:
    return (folder / f"{name}.ready").exists()


def _wait(check: Check, folder: Path, started: Mapping[str, subprocess.Popen]) -> None:
    """Until all have compiled or ended, or a quarter of the time is left for timing."""
    while check.left > check.limit / 4:
        ended = {name for name, process in started.items() if process.poll() is not None}
        if all(name in ended or _ready(folder, name) for name in started):
            return
        time.sleep(0.2)


@torch.inference_mode()
def compile_one(check: Check, config_name: str, count: int) -> None:
    """Compile a model, say so, and time it when told to."""
    config = CONFIGS / f"{config_name}.yaml"
    mark = check.out / "compiling" / f"{config_name}-{count}"
    _, model = build_onenet(config, check.options())
    work = detection(prepare(model, precision="bfloat16", compile=True), check, count)
    for _ in range(3):
        work()
    mark.with_name(mark.name + ".ready").touch()
    while not mark.with_name(mark.name + ".go").exists():
        if check.left < 0:
            return
        time.sleep(0.05)
    check.record(**row_of(config, "bf16 compiled", count, check.ms(work)))
