"""Describing the machine that figures were measured on."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from datetime import datetime, timezone
from typing import Any

import torch

from onenet.config.machine import cpu_flags, cpu_name, memory, versions

PACKAGES = (
    "onenet",
    "torch",
    "torchvision",
    "detectron2",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "pycocotools",
    "faster-coco-eval",
    "opencv-python",
    "numpy",
)


# By their flags in Linux's /proc/cpuinfo; the last two are Arm's.
INTEGER_UNITS = {
    "avx512_vnni": "AVX512-VNNI",
    "avx_vnni": "AVX-VNNI",
    "amx_int8": "AMX",
    "asimddp": "dot products",
    "i8mm": "I8MM",
}


def describe_machine(device: torch.device, command: str) -> dict[str, Any]:
    """The machine, versions and settings that figures depend on, ready for JSON."""
    size = memory()
    found = {
        "command": command,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu": cpu_name(),
        "cpu_flags": cpu_flags() or [],
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": None if size is None else round(size / 2**30, 1),
        "system": platform.platform(),
        "versions": {"python": platform.python_version(), **versions(PACKAGES)},
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["gpu"] = properties.name
        found["gpu_memory_gib"] = round(properties.total_memory / 2**30, 1)
        found["cuda"] = torch.version.cuda
        found["cudnn"] = torch.backends.cudnn.version()
        found["tf32"] = torch.backends.cudnn.allow_tf32
    return found


def summary(machine: dict[str, Any]) -> str:
    """The machine in two lines."""
    processor = machine.get("gpu") or machine["cpu"]
    installed = machine["versions"]
    names = ("python", "torch", "torchvision", "detectron2", "onnxruntime")
    return (
        f"{processor}, {machine['cores']} cores ({machine['cpu_capability']}; integer units: "
        f"{integer_units(machine['cpu_flags']) or 'none'}), "
        f"{machine['threads']} threads\n"
        + ", ".join(f"{name} {installed[name]}" for name in names if name in installed)
    )


def integer_units(flags: Iterable[str]) -> str:
    """The units of a processor that multiply 8-bit integers, by its flags; "" if it has none."""
    found = set(flags)
    return ", ".join(name for flag, name in INTEGER_UNITS.items() if flag in found)
