"""/dev/shm, the shared memory in which processes pass images on; imports no torch."""

from __future__ import annotations

import os

FOLDER = "/dev/shm"


def shared_memory() -> str:
    """How large /dev/shm is and how a container gets more, or that there is none."""
    try:
        disk = os.statvfs(FOLDER)
    except (AttributeError, OSError):  # Windows, macOS
        return f"There is no {FOLDER} here"
    size, free = (_mib(blocks * disk.f_frsize) for blocks in (disk.f_blocks, disk.f_bavail))
    return (
        f"{FOLDER} has {size} MiB, {free} of them free now; a container gets more "
        "with docker run --shm-size 8g"
    )


def _mib(size: int) -> str:
    mib = size / 2**20
    return f"{mib:,.0f}" if mib >= 10 else f"{mib:.2g}"
