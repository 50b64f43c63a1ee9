"""Reading an ablation's YAML file: a grid of config overrides with labels."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from _shared.ablations.table import COLUMNS, POSITIVES, SPEED
from onenet.config.yaml import read_with_bases
from onenet.errors import ConfigError

# Keys that tools/ablate.py sets itself, and what sets them.
RESERVED = {
    "DATASETS.TRAIN": "--dataset",
    "DATASETS.TEST": "--dataset",
    "MODEL.OneNet.NUM_CLASSES": "the classes of --dataset",
    "MODEL.OneNet.NMS": "every model is evaluated without and with NMS",
    "OUTPUT_DIR": "--output",
    "SEED": "--seeds",
    "TEST.EVALUATOR": "always coco",
}
_KEYS = (
    "title",
    "config",
    "opts",
    "axes",
    "evaluate",
    "rows",
    "seeds",
    "plot",
    "speed",
    "positives",
)
_SCALE = "scale"


@dataclass(frozen=True)
class Change:
    """Overrides of a config.

    Attributes:
        values: new values by key.
        factors: by key, factors of the values that the config has without this change.
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
        path: the spec's file.
        title: title of the tables.
        config: the config file to override.
        opts: overrides for all trainings, words ``KEY VALUE …``.
        axes: how trainings differ: for each axis, overrides by label.
        evaluate: how evaluations of a trained model differ, in the same form.
        rows: rows of the table, each with a label for every axis of ``axes`` and ``evaluate``.
        seeds: seeds that each row is trained with.
        plot: columns of the table to draw.
        speed: whether to measure images/s.
        positives: whether to count the positive samples of an object.
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
    positives: bool


def read_spec(path: Path) -> Spec:
    """Read an ablation from a YAML file; ``tools/ablate.py --help`` describes its keys.

    Raises:
        ConfigError: a key of the file is wrong; the message names it and what is expected.
    """
    files = list(read_with_bases(path))
    if len(files) > 1:
        raise ConfigError(f"{path}: _BASE_ is not allowed here; the file of config: may have one")
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
        isinstance(config, str),
        path,
        "config",
        config,
        "a path relative to the folder of this file",
    )
    _require(isinstance(title, str), path, "title", title, "text")
    speed, positives = (values.get(key, False) for key in ("speed", "positives"))
    _require(isinstance(speed, bool), path, "speed", speed, "true or false")
    _require(isinstance(positives, bool), path, "positives", positives, "true or false")
    seeds = values.get("seeds", [1])
    whole = isinstance(seeds, list) and all(type(seed) is int and seed >= 0 for seed in seeds)
    distinct = whole and 0 < len(seeds) == len(set(seeds))
    _require(
        distinct, path, "seeds", seeds, "different whole numbers of at least 0, such as [1, 2, 3]"
    )
    plot = values.get("plot", ["AP"])
    known = [*COLUMNS, *([SPEED] if speed else []), *([POSITIVES] if positives else [])]
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
        positives=positives,
    )


def words(values: Mapping[str, Any]) -> list[str]:
    """Overrides as ``KEY VALUE …`` on a command line."""
    return [str(word) for pair in values.items() for word in pair]


def slug(label: str) -> str:
    """A label as part of a folder's name, without underscores."""
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
        clash = len(names) < len(labels) or "" in names
        _require(not clash, path, here, list(labels), "labels that differ in letters or digits")
    return axes


def _read_change(path: Path, where: str, value: Any) -> Change:
    _require(isinstance(value, dict), path, where, value, "overrides, KEY: value, or {} for none")
    values = dict(value)
    factors = values.pop(_SCALE, {})
    _require(isinstance(factors, dict), path, f"{where}.scale", factors, "factors, KEY: 2.0")
    for key, factor in factors.items():
        number = type(factor) in (int, float) and factor > 0
        _require(number, path, f"{where}.scale.{key}", factor, "a number above 0")
        _require(
            key not in values, path, f"{where}.{key}", values.get(key), "no value besides its scale"
        )
    for key, single in values.items():
        plain = isinstance(single, str | int | float | list)
        _require(plain, path, f"{where}.{key}", single, "a value; write keys in full, with dots")
    for key in (*values, *factors):
        if key in RESERVED:
            raise ConfigError(
                f"{path}: {where} sets {key}, which the program sets itself: {RESERVED[key]}"
            )
    return Change(values, factors)


def _check_apart(path: Path, axes: Axes, evaluate: Axes) -> None:
    """Check that no two axes share a name or key, and that evaluations change no training key."""
    for both in set(axes) & set(evaluate):
        raise ConfigError(f"{path}: {both} is in axes and in evaluate; expected different names")
    for group in (axes, evaluate):
        owner: dict[str, str] = {}
        for axis, labels in group.items():
            for key in {key for change in labels.values() for key in change.keys}:
                if key in owner:
                    raise ConfigError(
                        f"{path}: the axes {owner[key]} and {axis} both set {key}; expected one "
                        "of them"
                    )
                owner[key] = axis
    for axis, labels in evaluate.items():
        for key in sorted({key for change in labels.values() for key in change.keys}):
            if key.startswith(("SOLVER.", "DATALOADER.")) or key.endswith(("_TRAIN", "WEIGHTS")):
                raise ConfigError(
                    f"{path}: evaluate.{axis} sets {key}, which only affects training; move it to "
                    "axes"
                )


def _read_rows(path: Path, value: Any, axes: Axes) -> tuple[Mapping[str, str], ...]:
    """The rows of each part of the grid in order, without repeats: labels by axis."""
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
            f"{path}: {where} has a label that YAML reads as {value}; write labels such as 'on' "
            "and 'off' in quotes"
        )
    _require(isinstance(value, str | int | float), path, where, value, "a label, such as text")
    return str(value)


def _some(names: Mapping[str, Any]) -> str:
    return f"one of {', '.join(names)}"


def _require(fine: object, path: Path, where: str, value: Any, expected: str) -> None:
    if not fine:
        raise ConfigError(f"{path}: {where} is {value!r}; expected {expected}")
