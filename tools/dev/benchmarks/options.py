"""The options of the benchmark's parts."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from _shared.timing import Run, Timings, alternate

# The exported file, with a network of float32, of integers and of float16.
ONNX = ("onnx", "onnx-int8", "onnx-float16")
SETTINGS = ("eager", "fused", "bf16", "compiled", "compiled-bf16", *ONNX)
# ONNX Runtime's execution providers, by type of device.
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def why_not(setting: str, device: torch.device) -> str:
    """Why this machine does not support a setting; "" if it does."""
    if setting.startswith("compiled"):
        compilers = filter(None, (os.getenv("CXX"), "g++", "clang++"))
        return "" if any(map(shutil.which, compilers)) else "needs a C++ compiler"
    if setting in ONNX:
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
    """The options of the command line, checked and with defaults.

    Attributes:
        device: device of everything except data loading and evaluation.
        configs: YAML files of the detectors.
        size: (height, width) px of the input.
        batches: batch sizes of inference.
        train_batch: images per training step.
        repeats: timed runs of each candidate.
        warmup: runs before the timed ones.
        quick: use the smallest sizes, to check that everything runs.
        settings: settings of inference and baselines, some of ``SETTINGS``. With ``"bf16"``, the
            training step is measured in bfloat16, too.
        dataset: ``ANNOTATIONS.json:FOLDER`` to load; "": draw one.
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
    ) -> dict[str, Timings]:
        """Time candidates in turn; see :func:`_shared.timing.alternate`.

        Args:
            device: device to time on; None: that of the options.
            most_repeats: limit of the repeats for runs of many seconds, which also limits the
                warm-up to one run.
        """
        repeats = self.repeats if most_repeats is None else min(self.repeats, most_repeats)
        return alternate(
            candidates,
            repeats=repeats,
            warmup=self.warmup if most_repeats is None else min(self.warmup, 1),
            device=self.device if device is None else device,
        )
