"""Checkpoint files: safe reading, whole writing, and the one that a run goes on from.

Nothing in a file is executed: ``.pth`` is read with ``weights_only=True``, ``.safetensors`` as it
is, and Detectron2's ``.pkl`` by :mod:`onenet.checkpoints.pickles`, which knows arrays and
containers only.
"""

from __future__ import annotations

import logging
import math
import mmap
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onenet.data.sources import is_line
from onenet.errors import CheckpointError, UnsafePickleError, WriteError
from onenet.files import write_whole

from .pickles import load_arrays

logger = logging.getLogger(__name__)
_NUMBERED = re.compile(r"model_(\d{7,})\.pth")
_TAG = "last_checkpoint"
# Functions that weights_only=True lets a file call; a few bytes make the one fill any memory, the
# other take hours.
_COSTLY = (b"\nbytearray\n", b"_codecs\nencode\n")


def read_checkpoint(path: Path, *, verify: bool = False) -> dict[str, Any]:
    """A checkpoint as ``{"model": {name: tensor}, …}``, on the CPU.

    Reads ``.pth``/``.pt``, ``.safetensors`` and Detectron2's ``.pkl``; a bare state dict becomes
    the value of "model".

    Args:
        verify: compare the checksums in a ``.pth``, too, which PyTorch may be told not to write.

    Raises:
        CheckpointError: the file is broken, or wants code to run.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        elif path.suffix == ".pkl":
            content = load_arrays(path.read_bytes())
        else:
            content = _load_torch_file(path, verify)
    except UnsafePickleError as error:
        raise CheckpointError(
            f"{path} is refused: loading it could run code ({error}). If you "
            "trust it, load it where it was made and save its weights alone: "
            "torch.save({'model': model.state_dict()}, 'weights.pth')"
        ) from error
    except Exception as error:
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint, it may be cut short: "
            f"{str(error) or type(error).__name__}"
        ) from error
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = dict(content)
    else:
        content = {"model": content}
    content["model"] = _tensors(path, content["model"])
    ema = content.get("ema")
    if isinstance(ema, Mapping) and "model" in ema:
        content["ema"] = {**ema, "model": _tensors(path, ema["model"])}
    names = content.get("class_names", [])
    if not isinstance(names, list) or not all(is_line(name) for name in names):
        raise CheckpointError(f"{path} holds class names that are none: {names!r:.60}")
    return content


def _tensors(path: Path, state: Any) -> dict[str, Tensor]:
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor | np.ndarray | np.generic)
        for name, value in state.items()
    ):
        raise CheckpointError(
            f"{path} holds no state dict (names and arrays), neither as such nor as 'model'"
        )
    for name, value in state.items():
        if not _is_ordinary(value):
            raise CheckpointError(
                f"{path}: {name!r:.200} is no ordinary array of real numbers, but sparse, "
                "quantised, complex or the like; save model.state_dict() as it is"
            )
    return {name.removeprefix("module."): torch.as_tensor(v) for name, v in state.items()}


def _is_ordinary(value: Tensor | np.ndarray | np.generic) -> bool:
    """Whether a parameter can be set to it."""
    if not isinstance(value, Tensor):
        return value.dtype.kind in "biuf" and value.dtype.itemsize <= 8
    odd = value.is_nested or value.is_quantized or value.is_complex() or value.device.type != "cpu"
    return not odd and value.layout is torch.strided


def _load_torch_file(path: Path, verify: bool) -> Any:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
                raise ValueError("it unpacks to more than it holds, as torch.save never writes")
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError("it is compressed, as torch.save never writes")
            # torch.load does not look at the checksums.
            if verify and (damaged := archive.testzip()):
                raise ValueError(f"the checksum of {damaged} in it is wrong")
    if path.stat().st_size == 0:
        raise ValueError("it is empty")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for name in _COSTLY:
            if content.find(name) >= 0:
                raise ValueError(f"it asks for {'.'.join(name.decode().split())}, as no weights do")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch words both the same, and its advice is the one not to follow.
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        if wanted is None:
            raise ValueError("it is not what torch.save writes") from error
        raise UnsafePickleError(f"it asks for {wanted[1]}") from error


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint so that it is there whole or, after any interruption, not at all.

    Tensors are laid out in the ordinary way, whatever a model's memory format.

    Raises:
        WriteError: it cannot be written; what was there before still is.
    """
    write_whole(path, lambda file: torch.save(_contiguous(content), file))


def _contiguous(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _contiguous(below) for key, below in value.items()}
    return value.contiguous() if isinstance(value, Tensor) else value


def add_checkpoint(path: Path, content: Mapping[str, Any], keep: int = 0) -> bool:
    """Save a checkpoint that ``--resume`` goes on from, and remove those that are not kept.

    Args:
        path: ``model_NNNNNNN.pth`` in the run's folder.
        keep: see :func:`prune_checkpoints`.

    Returns:
        Whether it is there; if not, the log says why, and those before it are as they were.
    """
    try:
        save_checkpoint(path, content)
        tag_last_checkpoint(path)
    except WriteError as error:
        logger.error("%s. Older checkpoints are as they were; the next save tries again", error)
        return False
    prune_checkpoints(path, keep)
    return True


def save_final(path: Path, content: Mapping[str, Any], last: Path | None) -> None:
    """Save what comes out at the end, when nothing can be tried later.

    Args:
        last: checkpoint of the run.

    Raises:
        WriteError: says what there is instead.
    """
    try:
        save_checkpoint(path, content)
    except WriteError as error:
        there = f"--resume goes on from {last}" if last else "there is no other checkpoint"
        raise WriteError(f"{error}; {there}") from error


def tag_last_checkpoint(path: Path) -> None:
    """Name ``path`` in the file ``last_checkpoint`` beside it, where ``--resume`` looks."""
    write_whole(path.with_name(_TAG), path.name.encode())


def prune_checkpoints(newest: Path, keep: int) -> None:
    """Remove the oldest ``model_NNNNNNN.pth`` in a run's folder; no other files.

    Args:
        newest: just saved; it stays, as do any with larger numbers.
        keep: how many stay, from the newest down; 0: all.
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
    """The checkpoints of a run, that which it should go on from first.

    That is the one that ``last_checkpoint`` names, then those before it, newest first. Where it
    names none that is there, the newest is first.
    """
    name = _tagged(folder)
    numbered = _numbered(folder)
    last = _number(name or "")
    order = sorted(numbered, key=lambda number: (number > last, -number))
    found = [numbered[number] for number in order]
    if name and _is_file(folder / name):
        found = [folder / name, *(path for path in found if path != folder / name)]
    return found


def _tagged(folder: Path) -> str | None:
    """What ``last_checkpoint`` says; ``None`` where there is no such file."""
    try:
        with (folder / _TAG).open("rb") as file:
            return file.read(4096).decode(errors="replace").strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        logger.warning("%s cannot be read: %s", folder / _TAG, error.strerror)
        return ""


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # no name of a file at all
        return False


def read_last_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint that a run should go on from, and its content; ``None`` before the first.

    One that is damaged or missing is told in a warning, and the one before it is taken.

    Raises:
        CheckpointError: none is left that can be read.
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
        for problem in problems:
            logger.warning("%s. Going on from %s", problem, path)
        return path, content
    raise CheckpointError(
        f"{'. '.join(problems)}. There is no other checkpoint to go on from: copy one into "
        f"{folder}, or start anew without --resume"
    )
