"""Reading text as every program reads it, and writing files whole or not at all."""

from __future__ import annotations

import errno
import io
import json
import logging
import math
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from .errors import DatasetError, OneNetError, WriteError

logger = logging.getLogger(__name__)
_FULL = (errno.ENOSPC, errno.EDQUOT)
_CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP)  # a folder, on some network file systems


def read_text(path: Path, error: type[OneNetError] = DatasetError) -> str:
    """The text of a UTF-8 file, without the byte-order mark that some editors put before it.

    Raises:
        error: the file cannot be read or is not UTF-8; the message names it.
    """
    content = read_bytes(path, error)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        line = content.count(b"\n", 0, problem.start) + 1
        raise error(
            f"{path} cannot be read as text: byte {content[problem.start]:#04x} in line {line} is "
            "not UTF-8; save the file as UTF-8"
        ) from problem
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_bytes(path: Path, error: type[OneNetError] = DatasetError) -> bytes:
    """The content of a file; raises ``error``, which names the file, if it cannot be read."""
    try:
        if path.exists() and not path.is_file():  # a pipe may wait for ever, a device never end
            raise OSError("it is not a regular file")
        return path.read_bytes()
    except (OSError, ValueError) as problem:  # ValueError: what is no path at all
        what = getattr(problem, "strerror", None) or problem
        raise error(f"{path} cannot be read: {what}") from problem


def read_json(path: Path, error: type[OneNetError] = DatasetError) -> Any:
    """What a JSON file holds; NaN and infinity are taken, as Python writes them.

    Raises:
        error: the file cannot be read or is not JSON; the message names it.
    """
    text = read_text(path, error)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise error(f"{path} is not valid JSON: {problem}") from problem


def write_whole(path: Path, content: bytes | Callable[[BinaryIO], object]) -> None:
    """Write a file under a temporary name in its folder and rename it once it is on the disk.

    Args:
        path: missing folders are created.
        content: bytes, or a function that writes them to the binary file it is called with.

    Raises:
        WriteError: the file cannot be written; an existing file is unchanged. If the disk is full,
            the message says how many bytes are missing.
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
    """Writes to a file until that fails, then only counts: the size that would be needed."""

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


def strict_json(value: Any, **options: Any) -> str:
    """Plain data as JSON that every reader takes: NaN and infinity become ``null``.

    Args:
        options: further ones of ``json.dumps``, such as ``indent``.
    """
    try:
        return json.dumps(value, allow_nan=False, **options)
    except ValueError:
        return json.dumps(_without_nan(value), allow_nan=False, **options)


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(one) for one in value]
    return value


def open_lines(path: Path) -> TextIO:
    """Open a file to add lines to; half a line that a killed run left is removed."""
    if path.is_file():
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
    return path.open("a", encoding="utf-8")


def remove_partial_files(folder: Path) -> None:
    """Remove temporary files of :func:`write_whole` that a killed run left behind.

    Args:
        folder: the run's folder; its subfolder ``inference`` is searched too.
    """
    for partial in (*folder.glob(".*.partial"), *(folder / "inference").rglob(".*.partial")):
        if partial.is_file():
            partial.unlink()
            logger.info("Removed %s, which a killed run left unfinished", partial)
