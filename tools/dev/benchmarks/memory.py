"""Measuring the extra peak memory of a piece of work.

On CUDA, torch's allocator counts it. On the CPU, the work runs in a new process, whose largest
resident size Linux records (``VmHWM``). The C library of that process returns every block at once,
so that memory left over from earlier work hides nothing.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

MIB = 2**20
_STATUS = Path("/proc/self/status")


def peaks_mib(
    maker: str, works: Sequence[dict[str, Any]], device: torch.device
) -> list[float] | None:
    """Measure the peak memory of each piece of work beyond what was in use before.

    Args:
        maker: ``"module:function"``; the function takes the keywords of a piece of work and
            ``device``, makes its inputs, and returns a function that does the work once.
        works: keywords of each piece of work, ready for JSON.

    Returns:
        MiB; ``None`` on the CPU of systems other than Linux, which cannot tell.
    """
    if device.type == "cuda":
        return [_cuda_peak(_find(maker)(**work, device=device)) for work in works]
    if not _STATUS.exists():
        return None
    dev = Path(__file__).parents[1]
    path = os.pathsep.join(filter(None, (str(dev), str(dev.parent), os.getenv("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory"],
        input=json.dumps({"maker": maker, "works": works, "threads": torch.get_num_threads()}),
        env={**os.environ, "PYTHONPATH": path, "MALLOC_MMAP_THRESHOLD_": "65536"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def _find(maker: str) -> Callable[..., Callable[[], Any]]:
    module, _, name = maker.partition(":")
    return getattr(importlib.import_module(module), name)


def _cuda_peak(work: Callable[[], Any]) -> float:
    work()  # the first run allocates handles and workspaces that stay
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / MIB


def _cpu_peak(work: Callable[[], Any]) -> float:
    work()  # the first run starts threads and loads code that stays
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets VmHWM
    work()
    return (_resident("VmHWM") - before) / MIB


def _resident(name: str) -> int:
    """Bytes from a line of /proc/self/status, which gives KiB."""
    lines = _STATUS.read_text(encoding="utf-8").splitlines()
    line = next(line for line in lines if line.startswith(f"{name}:"))
    return 1024 * int(line.split()[1])


def main() -> None:
    """Read the works from standard input, write their peaks to standard output."""
    asked = json.load(sys.stdin)
    torch.set_num_threads(asked["threads"])
    make = _find(asked["maker"])
    device = torch.device("cpu")
    print(json.dumps([_cpu_peak(make(**work, device=device)) for work in asked["works"]]))


if __name__ == "__main__":
    main()
