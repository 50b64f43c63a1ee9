"""Checkpoint files: reading them safely and writing them whole.

Reading never executes what a file says: ``.pth`` is read with ``weights_only=True``, Detectron2's
``.pkl`` by :mod:`onenet.checkpoints.pickles`, which knows only arrays and containers, and
``.safetensors`` holds no code.
"""

from __future__ import annotations

import mmap
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onenet.data.sources import is_line
from onenet.errors import CheckpointError, UnsafePickleError
from onenet.files import write_whole

from .pickles import load_arrays

# weights_only=True lets a file call these functions. With a few bytes, a file can make the first
# one fill any amount of memory and the second one run for hours.
_COSTLY = (b"\nbytearray\n", b"_codecs\nencode\n")


def read_checkpoint(path: Path, *, verify: bool = False) -> dict[str, Any]:
    """Read a checkpoint as ``{"model": {name: tensor}, …}``, with tensors on the CPU.

    Reads ``.pth``/``.pt``, ``.safetensors`` and Detectron2's ``.pkl``. A bare state dict becomes
    the value of "model", and so does Lightning's "state_dict". The names lose what wrappers put
    before them: ``module.`` (DataParallel), ``_orig_mod.`` (torch.compile), and ``model.`` if all
    have it (Lightning).

    Args:
        verify: also compare the checksums in a ``.pth``. Off by default, because PyTorch can be
            configured not to write them.

    Raises:
        CheckpointError: the file is broken, would run code, or holds no ordinary state dict.
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
            f"{path} cannot be read as a checkpoint; it may be cut short: "
            f"{str(error) or type(error).__name__}"
        ) from error
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = dict(content)
    elif isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = {"model": content["state_dict"]}
    else:
        content = {"model": content}
    content["model"] = _tensors(path, content["model"])
    ema = content.get("ema")
    if isinstance(ema, Mapping) and "model" in ema:
        content["ema"] = {**ema, "model": _tensors(path, ema["model"])}
    names = content.get("class_names", [])
    if not isinstance(names, list) or not all(is_line(name) for name in names):
        raise CheckpointError(
            f"{path}: 'class_names' must be a list of text without control characters, got "
            f"{names!r:.60}"
        )
    return content


def _tensors(path: Path, state: Any) -> dict[str, Tensor]:
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor | np.ndarray | np.generic)
        for name, value in state.items()
    ):
        raise CheckpointError(
            f"{path} holds no state dict: expected names with arrays, at the top level or under "
            "'model' or 'state_dict'"
        )
    for name, value in state.items():
        if not _is_ordinary(value):
            raise CheckpointError(
                f"{path}: {name!r:.200} is not an ordinary array of real numbers (sparse, "
                "quantised or complex, for example); save a plain model.state_dict()"
            )
    names = _without_wrappers(state)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise CheckpointError(
            f"{path} holds {twice!r:.200} twice, with and without a wrapper's prefix"
        )
    return {n: torch.as_tensor(value) for n, value in zip(names, state.values(), strict=True)}


def _without_wrappers(names: Iterable[str]) -> list[str]:
    """Parameter names as the model itself has them."""
    own = [name.replace("_orig_mod.", "").removeprefix("module.") for name in names]
    if all(name.startswith("model.") for name in own):
        own = [name.removeprefix("model.") for name in own]
    return own


def _is_ordinary(value: Tensor | np.ndarray | np.generic) -> bool:
    """Whether a parameter can take this value: a dense array of real numbers on the CPU."""
    if not isinstance(value, Tensor):
        return value.dtype.kind in "biuf" and value.dtype.itemsize <= 8
    odd = value.is_nested or value.is_quantized or value.is_complex() or value.device.type != "cpu"
    return not odd and value.layout is torch.strided


def _load_torch_file(path: Path, verify: bool) -> Any:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
                raise ValueError("it unpacks to more than its size, unlike files of torch.save")
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError("it is compressed, unlike files of torch.save")
            # torch.load ignores the checksums.
            if verify and (damaged := archive.testzip()):
                raise ValueError(f"the checksum of {damaged} in it is wrong")
    if path.stat().st_size == 0:
        raise ValueError("it is empty")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for name in _COSTLY:
            if content.find(name) >= 0:
                function = ".".join(name.decode().split())
                raise ValueError(f"it asks for {function}, which weights do not need")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch gives the same message for broken and for unsafe files, and advises to load them
        # without weights_only, which would run their code.
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        if wanted is None:
            raise ValueError("it is not a file of torch.save") from error
        raise UnsafePickleError(f"it asks for {wanted[1]}") from error


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint; after an interruption the file is either complete or unchanged.

    Tensors are made contiguous, so the file does not depend on the model's memory format.

    Raises:
        WriteError: the file cannot be written; a file that was there is unchanged.
    """
    write_whole(path, lambda file: torch.save(_contiguous(content), file))


def _contiguous(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _contiguous(below) for key, below in value.items()}
    return value.contiguous() if isinstance(value, Tensor) else value
