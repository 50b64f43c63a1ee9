"""Versions, the bandwidth of a copy, and the speed of a matrix product in bfloat16."""

from __future__ import annotations

import torch
from _shared.machine import describe_machine

from .check import Check


def run(check: Check) -> None:
    found = describe_machine(check.device, "tools/dev/gpu_check.py")
    check.record(**{k: v for k, v in found.items() if k != "cpu_flags"})
    count = 2**20 if check.quick else 2**32
    source = torch.ones(count // 2, dtype=torch.uint8, device=check.device)
    target = torch.empty_like(source)
    ms = check.ms(lambda: target.copy_(source))
    check.record(what="copy", ms=ms, gb_per_s=count / ms / 1e6)
    side = 128 if check.quick else 8192
    a, b = (torch.randn(side, side, device=check.device).bfloat16() for _ in range(2))
    ms = check.ms(lambda: a @ b)
    check.record(what="bf16 product", side=side, ms=ms, tflop_per_s=2 * side**3 / ms / 1e9)
