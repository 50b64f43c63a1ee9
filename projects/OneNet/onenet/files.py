"""Reading text, and writing files: whole or not at all, and never onto what a program reads."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import logging
import math
import os
import shutil
import time
import unicodedata
from collections.abc import Callable, Hashable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, BinaryIO, TextIO

from .errors import DatasetError, OneNetError, WriteError

logger = logging.getLogger(__name__)
_TRIES, _PAUSE = 10, 0.1  # of a rename that is denied, and s between two of them
_FAR = 1 << 30  # Windows locks bytes, which nobody can read then
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


def hash_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


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
        put_in_place(partial, path)
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


def put_in_place(partial: Path, path: Path) -> None:
    """Give a file that is on the disk its name, in place of what had it; same folder."""
    _rename(partial, path)
    _sync_folder(path.parent)


def _rename(partial: Path, path: Path) -> None:
    # Windows denies it while another program, such as a virus scanner, has the old file open.
    for left in reversed(range(_TRIES)):
        try:
            return os.replace(partial, path)
        except PermissionError:
            if not left:
                raise
            time.sleep(_PAUSE)


def _sync_folder(folder: Path) -> None:
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # Windows opens no folder, and here nobody may list it
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
    finally:
        os.close(descriptor)


def lock_file(file: IO[bytes]) -> bool:
    """Lock a file for this process; the operating system drops the lock when the process ends.

    Returns:
        Whether no other process has locked it. Where files cannot be locked, true, with a warning.
    """
    try:
        # Not flock: processes that load data would share the lock, and outlive a killed run.
        from fcntl import LOCK_EX, LOCK_NB, lockf
    except ImportError:  # Windows
        import msvcrt

        file.seek(_FAR)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    try:
        lockf(file, LOCK_EX | LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        logger.warning(
            "%s cannot be locked (%s): nothing keeps a second program out of its folder",
            file.name,
            error.strerror,
        )
    return True


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
            try:
                partial.unlink()
            except PermissionError as error:  # on Windows, another program has it open
                logger.warning("%s could not be removed: %s", partial, error.strerror)
            else:
                logger.info("Removed %s, which a killed run left unfinished", partial)


def check_outputs(outputs: Iterable[str | Path], inputs: Iterable[str | Path] = ()) -> None:
    """Refuse outputs that would replace a file that is read, or each other.

    Recognises a file by any of its paths: relative ones, links, hard links, and other case where
    the disk ignores it.

    Args:
        outputs: the files that a program will write.
        inputs: the files that it reads, or that belong to what it reads; may be missing.

    Raises:
        OneNetError: names the output, and the input or the other output.
    """
    places = _Places()
    read = {places.key(path): path for path in inputs}
    written: dict[Hashable, str | Path] = {}
    for path in outputs:
        key = places.key(path)
        if key in read:
            same = "" if str(read[key]) == str(path) else f", which is the same file as {path}"
            raise OneNetError(
                f"the output would overwrite the input {read[key]}{same}: give another output"
            )
        if key in written:
            raise OneNetError(
                f"two outputs would be one file: {written[key]} and {path}; rename one of the "
                "inputs, or give another output"
            )
        written[key] = path


class _Places:
    """Keys of files, equal for paths of one file, even if it does not exist yet."""

    def __init__(self) -> None:
        self._ignores_case: dict[str, bool] = {}

    def key(self, path: str | Path) -> Hashable:
        real = os.path.realpath(os.path.expanduser(path))
        if (key := _inode(real)) is not None:
            return key
        folder, names = real, []
        while (key := _inode(folder)) is None and os.path.dirname(folder) != folder:
            folder, name = os.path.split(folder)
            names.append(name)
        if folder not in self._ignores_case:
            self._ignores_case[folder] = _ignores_case(folder)
        if self._ignores_case[folder]:
            names = [unicodedata.normalize("NFC", name).casefold() for name in names]
        return (key, *names)


def _inode(path: str) -> Hashable | None:
    """What all paths of a file share; ``None`` if there is no such file."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # not there, or not a path
        return None
    # Some network disks of Windows number no files.
    return (found.st_dev, found.st_ino) if found.st_ino else os.path.normcase(path)


def _ignores_case(folder: str) -> bool:
    """Whether names in an existing folder that differ only in case are one file."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if (other := entry.name.swapcase()) != entry.name:
                found = _inode(os.path.join(folder, other))
                return found is not None and found == _inode(entry.path)
    parent, name = os.path.split(folder)
    if not name:
        return os.path.normcase("A") == "a"
    if name.swapcase() == name:
        return _ignores_case(parent)
    return _inode(os.path.join(parent, name.swapcase())) == _inode(folder)
