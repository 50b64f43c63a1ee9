"""The checkpoints of a run: adding one, keeping the newest, and finding the one to resume from."""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from onenet.errors import CheckpointError, WriteError
from onenet.files import write_whole

from .files import read_checkpoint, save_checkpoint

logger = logging.getLogger(__name__)
_NUMBERED = re.compile(r"model_(\d{7,})\.pth")
_TAG = "last_checkpoint"


def add_checkpoint(path: Path, content: Mapping[str, Any], keep: int = 0) -> bool:
    """Save a checkpoint for ``--resume`` and remove the old ones that are not kept.

    Args:
        path: ``model_NNNNNNN.pth`` in the run's folder.
        content: see :func:`~.files.read_checkpoint`.
        keep: see :func:`prune_checkpoints`.

    Returns:
        Whether the checkpoint was saved. If not, the log says why, and nothing is removed.
    """
    try:
        save_checkpoint(path, content)
        tag_last_checkpoint(path)
    except WriteError as error:
        logger.error("%s. Older checkpoints are unchanged; the next save tries again", error)
        return False
    prune_checkpoints(path, keep)
    return True


def save_final(path: Path, content: Mapping[str, Any], last: Path | None) -> None:
    """Save the weights at the end of a run, where a failure is an error.

    Args:
        last: the run's newest checkpoint, for the message; None: there is none.

    Raises:
        WriteError: the file cannot be written; the message says where to resume from.
    """
    try:
        save_checkpoint(path, content)
    except WriteError as error:
        there = f"--resume goes on from {last}" if last else "there is no other checkpoint"
        raise WriteError(f"{error}; {there}") from error


def tag_last_checkpoint(path: Path) -> None:
    """Write the name of ``path`` to ``last_checkpoint`` in its folder, where ``--resume`` looks."""
    write_whole(path.with_name(_TAG), path.name.encode())


def prune_checkpoints(newest: Path, keep: int) -> None:
    """Remove the oldest ``model_NNNNNNN.pth`` in a run's folder, and no other files.

    Args:
        newest: the checkpoint saved last; it stays, and so do those with larger numbers.
        keep: number of checkpoints to keep, counted down from ``newest``; 0: all.
    """
    numbered = _numbered(newest.parent)
    last = _number(newest.name)
    for number in sorted(number for number in numbered if number <= last)[: -keep or 0]:
        try:
            numbered[number].unlink(missing_ok=True)
        except OSError as error:
            logger.warning("%s could not be removed: %s", numbered[number], error.strerror)


def _number(name: str) -> float:
    match = _NUMBERED.fullmatch(name)
    return int(match[1]) if match else math.inf


def _numbered(folder: Path) -> dict[float, Path]:
    files = {_number(path.name): path for path in folder.glob("model_*.pth") if path.is_file()}
    files.pop(math.inf, None)
    return files


def find_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, in the order in which to try to resume from them.

    First the one that ``last_checkpoint`` names, then those before it, newest first, then those
    after it. If it names no existing file, the newest comes first.
    """
    name = _tagged(folder)
    numbered = _numbered(folder)
    last = _number(name or "")
    order = sorted(numbered, key=lambda number: (number > last, -number))
    found = [numbered[number] for number in order]
    if name and os.path.isfile(folder / name):
        found = [folder / name, *(path for path in found if path != folder / name)]
    return found


def _tagged(folder: Path) -> str | None:
    """The content of ``last_checkpoint``; ``None`` if there is no such file."""
    try:
        with (folder / _TAG).open("rb") as file:
            return file.read(4096).decode(errors="replace").strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        logger.warning("%s cannot be read: %s", folder / _TAG, error.strerror)
        return ""


def read_last_checkpoint(
    folder: Path, refuse: Callable[[Path, dict[str, Any]], str | None] = lambda *_: None
) -> tuple[Path, dict[str, Any]] | None:
    """Find and read the checkpoint to resume from.

    If one is damaged, missing or refused, logs a warning and tries the one before it.

    Args:
        folder: of the run.
        refuse: says of a checkpoint and its content why not to resume from it; ``None``: it is one.

    Returns:
        The checkpoint's path and content; ``None`` if the folder has no checkpoint yet.

    Raises:
        CheckpointError: no checkpoint of the run can be read.
    """
    name, found = _tagged(folder), find_checkpoints(folder)
    if name is None and not found:
        return None
    problems = []
    if name is None:
        problems.append(f"{folder / _TAG} is missing")
    elif not name or not found or found[0] != folder / name:
        problems.append(f"{folder / _TAG} names {name[:60]!r}, which is not there")
    for path in found:
        try:
            content = read_checkpoint(path, verify=True)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        if why := refuse(path, content):
            problems.append(why)
            continue
        for problem in problems:
            logger.warning("%s. Going on from %s", problem, path)
        return path, content
    raise CheckpointError(
        f"{'. '.join(problems)}. There is no other checkpoint to resume from: copy one into "
        f"{folder}, or start over with --overwrite"
    )
