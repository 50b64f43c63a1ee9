"""Pointwise work in chunks, to keep its temporaries small."""

from __future__ import annotations

import torch

# Elements of a temporary: few enough for a CPU's cache, enough to keep a GPU busy.
_CPU_THREAD, _MOST = 2**18, 2**22


def chunks(rows: int, width: int, device: torch.device) -> list[slice]:
    """Consecutive slices of ``rows`` rows of ``width`` elements, at least one row in each.

    Only one while ``torch.compile`` traces, which fuses the work and would unroll the loop.
    """
    if torch.compiler.is_compiling():
        return [slice(None)]
    limit = _MOST
    if device.type == "cpu":
        limit = min(limit, _CPU_THREAD * torch.get_num_threads())
    step = max(1, limit // max(1, width))
    return [slice(start, start + step) for start in range(0, rows, step)]
