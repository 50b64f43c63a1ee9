"""What the parts are asked to do."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from _shared.timing import Run, Samples, alternate

ONNX = "onnx"
SETTINGS = ("eager", "fused", "bf16", "compiled", "compiled-bf16", ONNX)
# ONNX Runtime's, by type of device.
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def why_not(setting: str, device: torch.device) -> str:
    """What a setting lacks on this machine; "" if nothing."""
    if setting.startswith("compiled"):
        compilers = filter(None, (os.getenv("CXX"), "g++", "clang++"))
        return "" if any(map(shutil.which, compilers)) else "needs a C++ compiler"
    if setting == ONNX:
        packages = ("onnx", "onnxscript", "onnxruntime")
        missing = [name for name in packages if importlib.util.find_spec(name) is None]
        if missing:
            return f"needs {', '.join(missing)}: pip install 'onenet[export]'"
        import onnxruntime

        if PROVIDERS[device.type] not in onnxruntime.get_available_providers():
            return f"needs an ONNX Runtime with {PROVIDERS[device.type]}"
    return ""


@dataclass(frozen=True)
class Options:
    """The command line, checked and completed.

    Attributes:
        device: that everything runs on, except data loading and evaluation.
        configs: YAML files of the detectors.
        size: (height, width) px of the input.
        batches: batch sizes of inference.
        train_batch: images of a training step.
        repeats: runs that count, of every candidate.
        warmup: runs before them that do not.
        quick: smallest sizes: shows that it works, not how fast.
        settings: of inference and peers, some of ``SETTINGS``.
        dataset: ``ANNOTATIONS.json:FOLDER`` to load; "" draws one.
        workers: numbers of loading processes to try.
    """

    device: torch.device
    configs: tuple[Path, ...]
    size: tuple[int, int]
    batches: tuple[int, ...]
    train_batch: int
    repeats: int
    warmup: int
    quick: bool = False
    settings: tuple[str, ...] = SETTINGS
    dataset: str = ""
    workers: tuple[int, ...] = (0,)

    def time(
        self,
        candidates: Mapping[str, Run],
        *,
        device: torch.device | None = None,
        most_repeats: int | None = None,
    ) -> dict[str, Samples]:
        """Samples of candidates; see :func:`~benchmarks.timing.alternate`.

        Args:
            device: in place of the options' own.
            most_repeats: limit for runs of many seconds.
        """
        repeats = self.repeats if most_repeats is None else min(self.repeats, most_repeats)
        return alternate(
            candidates,
            repeats=repeats,
            warmup=self.warmup if most_repeats is None else min(self.warmup, 1),
            device=self.device if device is None else device,
        )
