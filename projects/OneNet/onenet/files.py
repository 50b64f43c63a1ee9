"""Files that are there whole or not at all, whatever interrupts their writing."""

from __future__ import annotations

import errno
import io
import logging
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from .errors import WriteError

logger = logging.getLogger(__name__)
_FULL = (errno.ENOSPC, errno.EDQUOT)
_CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP)  # a folder, on some network file systems


def write_whole(path: Path, content: bytes | Callable[[BinaryIO], object]) -> None:
    """Write a file under a temporary name in its folder, and rename it once it is on the disk.

    Args:
        path: folders that are missing are made.
        content: bytes, or what writes them to the binary file that it is called with.

    Raises:
        WriteError: nothing has changed; tells how many bytes are missing where the disk is full.
    """
    partial = path.with_name(f".{path.name}.partial")
    size = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            counter = _Counter(file)
            counter.write(content) if isinstance(content, bytes) else content(counter)
            size = counter.size
            if counter.error is not None:
                raise counter.error
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        _sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink()
        if isinstance(error, OSError):
            raise WriteError(_explain(path, size, error)) from error
        raise


class _Counter(io.RawIOBase):
    """Passes on what is written until that fails, and then counts only: what would be needed."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.size = 0
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:
        self.size += len(data)
        if self.error is None:
            try:
                self.file.write(data)
            except OSError as error:
                self.error = error
        return len(data)


def _explain(path: Path, size: int, error: OSError) -> str:
    text = f"{path} could not be written: {error.strerror or error}"
    if error.errno not in _FULL:
        return text
    text += f". It takes {size:,} bytes"
    missing = size - shutil.disk_usage(path.parent).free
    return text + (f", {missing:,} more than are free" if missing > 0 else "") + "; make room"


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
    finally:
        os.close(descriptor)


def remove_partial_files(folder: Path) -> None:
    """Remove what a killed run left of :func:`write_whole` in its folder and ``inference``."""
    for partial in (*folder.glob(".*.partial"), *(folder / "inference").rglob(".*.partial")):
        if partial.is_file():
            partial.unlink()
            logger.info("Removed %s, which a killed run left half written", partial)
