"""Describing the machine that figures were measured on."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

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
    found = {
        "command": command,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu": _cpu_info("model name") or platform.processor(),
        "cpu_flags": (_cpu_info("flags") or _cpu_info("Features")).split(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": _memory_gib(),
        "system": platform.platform(),
        "versions": {"python": platform.python_version(), **_versions()},
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
    versions = machine["versions"]
    names = ("python", "torch", "torchvision", "detectron2", "onnxruntime")
    return (
        f"{processor}, {machine['cores']} cores ({machine['cpu_capability']}; integer units: "
        f"{integer_units(machine['cpu_flags']) or 'none'}), "
        f"{machine['threads']} threads\n"
        + ", ".join(f"{name} {versions[name]}" for name in names if name in versions)
    )


def integer_units(flags: Iterable[str]) -> str:
    """The units of a processor that multiply 8-bit integers, by its flags; "" if it has none."""
    found = set(flags)
    return ", ".join(name for flag, name in INTEGER_UNITS.items() if flag in found)


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _cpu_info(key: str) -> str:
    """The value of a line in Linux's /proc/cpuinfo; "" if there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None
