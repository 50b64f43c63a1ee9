"""Disks without room, and damaged files."""

from __future__ import annotations

from pathlib import Path

import pytest

FULL = Path("/dev/full")


full_disk = pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")


def full(path: Path) -> None:
    """Have no room for a file, without being root: its temporary name leads to /dev/full."""
    path.with_name(f".{path.name}.partial").symlink_to(FULL)


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
