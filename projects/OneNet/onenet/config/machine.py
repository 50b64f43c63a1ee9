"""The machine that a program runs on: processor, cores, memory, versions of packages; no torch."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def versions(packages: Iterable[str]) -> dict[str, str]:
    """The versions of those packages that are installed."""
    found = {}
    for name in packages:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def cpu_name() -> str:
    """The processor as its maker calls it; "" if the system does not say."""
    if sys.platform == "darwin":
        asked = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(asked, capture_output=True, text=True).stdout.strip()
    return _cpu_info("model name") or platform.processor()


def cpu_flags() -> list[str] | None:
    """What Linux calls the abilities of the processor; ``None`` on other systems."""
    flags = _cpu_info("flags") or _cpu_info("Features")  # x86, ARM
    return flags.split() if flags else None


def _cpu_info(key: str) -> str:
    """The value of a line in Linux's /proc/cpuinfo; "" if there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    pairs = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in pairs if name.strip() == key), "")


def usable_cores() -> int:
    """The cores that this process may run on, as its affinity says."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def core_limit() -> float | None:
    """The cores' worth of time that a container grants; ``None``: as much as there is."""
    quota, _, period = _cgroup("cpu.max").partition(" ")
    if not period:  # version 1
        quota, period = _cgroup("cpu/cpu.cfs_quota_us"), _cgroup("cpu/cpu.cfs_period_us")
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() else None


def memory() -> int | None:
    """The machine's memory in bytes; ``None`` if the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def memory_limit() -> int | None:
    """The memory in bytes that a container grants; ``None``: as much as there is."""
    text = _cgroup("memory.max") or _cgroup("memory/memory.limit_in_bytes")
    # Version 1 writes "no limit" as a number near 2^63.
    return int(text) if text.isdecimal() and int(text) < 1 << 60 else None


def _cgroup(name: str) -> str:
    """A setting of this process's container; "" if there is none."""
    with suppress(OSError):
        return (_CGROUPS / name).read_text(encoding="utf-8").strip()
    return ""
