"""Config values as keyword arguments: ``max_iter=600`` stands for ``SOLVER.MAX_ITER 600``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onenet.checkpoints.changes import flat
from onenet.errors import ConfigError, did_you_mean
from onenet.lightning.config import get_cfg
from onenet.lightning.detectron2_keys import detectron2_only

# What people call these keys.
_ALIASES = {
    "batch_size": "SOLVER.IMS_PER_BATCH",
    "lr": "SOLVER.BASE_LR",
    "workers": "DATALOADER.NUM_WORKERS",
}


def to_opts(overrides: Mapping[str, Any]) -> list[Any]:
    """``[KEY, VALUE, …]`` of keyword arguments.

    A name is the last part of a key in lower case (``max_iter``), one of ``batch_size``, ``lr`` and
    ``workers``, or a whole key, ``**{"MODEL.RESNETS.NORM": "BN"}``.

    Raises:
        ConfigError: a name that no key or several keys end with; says which are near.
    """
    known = list(flat(get_cfg()))
    opts: list[Any] = []
    for name, value in overrides.items():
        opts += [_key(name, known), str(value) if isinstance(value, Path) else value]
    return opts


def _key(name: str, known: list[str]) -> str:
    if name in _ALIASES:
        return _ALIASES[name]
    if "." in name:
        if name in known or detectron2_only(name):
            return name
        raise ConfigError(f"unknown key {name}{did_you_mean(name, known)}")
    found = [key for key in known if key.rpartition(".")[2].lower() == name.lower()]
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(
            f"{name} may be {' or '.join(found)}: give the whole key, **{{{found[0]!r}: …}}"
        )
    names = {key.rpartition(".")[2].lower() for key in known} | set(_ALIASES)
    raise ConfigError(f"there is no config key {name}{did_you_mean(name, sorted(names))}")
