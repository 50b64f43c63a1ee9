"""Work whose memory the test of the benchmark knows; imported by a process of its own."""

from __future__ import annotations

from collections.abc import Callable

import torch


def allocate(mib: int, device: torch.device) -> Callable[[], None]:
    """Work that takes ``mib`` MiB for a moment, in a large and a small block."""

    def work() -> None:
        blocks = [torch.ones(size, dtype=torch.uint8) for size in (mib * 2**20 - 2**16, 2**16)]
        del blocks

    return work
