"""What an ablation's YAML file asks for: a grid of overrides, by labels."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from _shared.ablations.table import COLUMNS, SPEED
from onenet.config.yaml import read_with_bases
from onenet.errors import ConfigError

# What tools/ablate.py sets itself.
RESERVED = {
    "DATASETS.TRAIN": "--dataset",
    "DATASETS.TEST": "--dataset",
    "MODEL.OneNet.NUM_CLASSES": "the classes of --dataset",
    "MODEL.OneNet.NMS": "every model is evaluated without and with it",
    "OUTPUT_DIR": "--output",
    "SEED": "--seeds",
    "TEST.EVALUATOR": "COCO's",
}
_KEYS = ("title", "config", "opts", "axes", "evaluate", "rows", "seeds", "plot", "speed")
_SCALE = "scale"


@dataclass(frozen=True)
class Change:
    """Overrides of a config.

    Attributes:
        values: by key.
        factors: by key; of what the config has without this change.
    """

    values: Mapping[str, Any]
    factors: Mapping[str, float]

    @property
    def keys(self) -> set[str]:
        return {*self.values, *self.factors}


Axes = Mapping[str, Mapping[str, Change]]


@dataclass(frozen=True)
class Spec:
    """An ablation.

    Attributes:
        path: of its file.
        title: of its tables.
        config: the config that the overrides are of.
        opts: for all trainings, words ``KEY VALUE …``.
        axes: what trainings differ in; overrides by label by axis.
        evaluate: what evaluations of a trained model differ in, likewise.
        rows: of the table, a label for each of ``axes`` and ``evaluate``.
        seeds: each row is trained with all of them.
        plot: columns of the table that are drawn.
        speed: whether images/s are measured.
    """

    path: Path
    title: str
    config: Path
    opts: tuple[str, ...]
    axes: Axes
    evaluate: Axes
    rows: tuple[Mapping[str, str], ...]
    seeds: tuple[int, ...]
    plot: tuple[str, ...]
    speed: bool


def read_spec(path: Path) -> Spec:
    """The ablation of a YAML file; its keys: ``tools/ablate.py --help``.

    Raises:
        ConfigError: says which key of the file is wrong, and what is expected.
    """
    files = list(read_with_bases(path))
    if len(files) > 1:
        raise ConfigError(f"{path}: an ablation has no _BASE_; its config: may")
    values = files[-1][1]
    for key in values:
        if key not in _KEYS:
            raise ConfigError(f"{path}: unknown key {key}; known are {', '.join(_KEYS)}")
    for key in ("config", "axes"):
        if key not in values:
            raise ConfigError(f"{path}: {key} is missing")
    axes = _read_axes(path, "axes", values["axes"])
    evaluate = _read_axes(path, "evaluate", values.get("evaluate", {}))
    _check_apart(path, axes, evaluate)
    opts = _read_change(path, "opts", values.get("opts", {}))
    _require(
        not opts.factors, path, "opts.scale", opts.factors, "nothing: scale belongs to a label"
    )
    _require(bool(axes), path, "axes", values["axes"], "at least one axis")
    config, title = values["config"], values.get("title", path.stem)
    _require(
        isinstance(config, str), path, "config", config, "a path, from the folder of this file"
    )
    _require(isinstance(title, str), path, "title", title, "text")
    speed = values.get("speed", False)
    _require(isinstance(speed, bool), path, "speed", speed, "true or false")
    seeds = values.get("seeds", [1])
    whole = isinstance(seeds, list) and all(type(seed) is int and seed >= 0 for seed in seeds)
    unlike = whole and 0 < len(seeds) == len(set(seeds))
    _require(unlike, path, "seeds", seeds, "different whole numbers from 0 on, such as [1, 2, 3]")
    plot = values.get("plot", ["AP"])
    known = [*COLUMNS, *([SPEED] if speed else [])]
    right = isinstance(plot, list) and plot and all(name in known for name in plot)
    _require(bool(right), path, "plot", plot, f"a list of some of {', '.join(known)}")
    return Spec(
        path=path,
        title=title,
        config=path.parent / config,
        opts=tuple(words(opts.values)),
        axes=axes,
        evaluate=evaluate,
        rows=_read_rows(path, values.get("rows", [{}]), {**axes, **evaluate}),
        seeds=tuple(seeds),
        plot=tuple(plot),
        speed=speed,
    )


def words(values: Mapping[str, Any]) -> list[str]:
    """Overrides as ``KEY VALUE …`` on a command line."""
    return [str(word) for pair in values.items() for word in pair]


def slug(label: str) -> str:
    """A label as a part of a folder's name; has no underscore."""
    return re.sub(r"[^\w.+-]|_", "-", label)


def _read_axes(path: Path, where: str, value: Any) -> Axes:
    _require(isinstance(value, dict), path, where, value, "axes with labels, each with overrides")
    axes: dict[str, dict[str, Change]] = {}
    for axis, labels in value.items():
        here = f"{where}.{axis}"
        _require(isinstance(labels, dict) and labels, path, here, labels, "labels with overrides")
        axes[str(axis)] = {
            _label(path, here, label): _read_change(path, f"{here}.{label}", change)
            for label, change in labels.items()
        }
        names = {slug(label) for label in axes[str(axis)]}
        alike = len(names) < len(labels) or "" in names
        _require(not alike, path, here, list(labels), "labels whose letters and digits differ")
    return axes


def _read_change(path: Path, where: str, value: Any) -> Change:
    _require(isinstance(value, dict), path, where, value, "overrides, KEY: value; {} for none")
    values = dict(value)
    factors = values.pop(_SCALE, {})
    _require(isinstance(factors, dict), path, f"{where}.scale", factors, "factors, KEY: 2.0")
    for key, factor in factors.items():
        number = type(factor) in (int, float) and factor > 0
        _require(number, path, f"{where}.scale.{key}", factor, "a number above 0")
        _require(key not in values, path, f"{where}.{key}", values.get(key), "a value or a scale")
    for key, single in values.items():
        plain = isinstance(single, str | int | float | list)
        _require(plain, path, f"{where}.{key}", single, "a value; write the key with its dots")
    for key in (*values, *factors):
        if key in RESERVED:
            raise ConfigError(f"{path}: {where} sets {key}, which is set here: {RESERVED[key]}")
    return Change(values, factors)


def _check_apart(path: Path, axes: Axes, evaluate: Axes) -> None:
    """No key and no name is of two axes; evaluations leave the training alone."""
    for both in set(axes) & set(evaluate):
        raise ConfigError(f"{path}: {both} is in axes and in evaluate; expected different names")
    for group in (axes, evaluate):
        owner: dict[str, str] = {}
        for axis, labels in group.items():
            for key in {key for change in labels.values() for key in change.keys}:
                if key in owner:
                    raise ConfigError(
                        f"{path}: {key} is set by the axes {owner[key]} and {axis}; expected one"
                    )
                owner[key] = axis
    for axis, labels in evaluate.items():
        for key in sorted({key for change in labels.values() for key in change.keys}):
            if key.startswith(("SOLVER.", "DATALOADER.")) or key.endswith(("_TRAIN", "WEIGHTS")):
                raise ConfigError(
                    f"{path}: evaluate.{axis} sets {key}, which only trainings read; expected it "
                    "in axes"
                )


def _read_rows(path: Path, value: Any, axes: Axes) -> tuple[Mapping[str, str], ...]:
    """Labels by axis for every row, in order: those of each part of the grid, once."""
    parts = isinstance(value, list) and value and all(isinstance(part, dict) for part in value)
    _require(bool(parts), path, "rows", value, "a list of parts of the grid, {axis: label, …}")
    rows: list[Mapping[str, str]] = []
    for number, part in enumerate(value, start=1):
        for axis in part:
            _require(axis in axes, path, f"rows, part {number}, {axis}", part[axis], _some(axes))
        chosen = []
        for axis, labels in axes.items():
            here = f"rows, part {number}, {axis}"
            some = part.get(axis, list(labels))
            some = [_label(path, here, one) for one in (some if isinstance(some, list) else [some])]
            for label in some:
                _require(label in labels, path, here, label, _some(labels))
            chosen.append(some)
        grid = (dict(zip(axes, labels, strict=True)) for labels in product(*chosen))
        rows += [row for row in grid if row not in rows]
    return tuple(rows)


def _label(path: Path, where: str, value: Any) -> str:
    if isinstance(value, bool):
        raise ConfigError(
            f"{path}: {where} has a label that YAML reads as {value}; write it in quotes, as 'on' "
            "and 'off'"
        )
    _require(isinstance(value, str | int | float), path, where, value, "a label, such as text")
    return str(value)


def _some(names: Mapping[str, Any]) -> str:
    return f"one of {', '.join(names)}"


def _require(fine: object, path: Path, where: str, value: Any, expected: str) -> None:
    if not fine:
        raise ConfigError(f"{path}: {where} is {value!r}; expected {expected}")
