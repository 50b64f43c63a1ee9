"""Mutations of plain data: dicts, lists and scalars, as JSON, YAML and headers hold them."""

from __future__ import annotations

import copy
import math
from random import Random
from typing import Any

NUMBERS = [0, -1, 1, 2, 3, 7, 90, 0.5, -0.0, 1e-300, 1e38, 3.5e38, 1e300, -1e300, 5e-324]
NUMBERS += [math.nan, math.inf, -math.inf, True, False]
NUMBERS += [2**bits + by for bits in (31, 32, 53, 63, 64) for by in (-1, 0)]
NUMBERS += [-number for number in NUMBERS[-10:]]
NUMBERS += [10**19, 10**100, 10**400, 10**4000]
TEXTS = ["", " ", "0", "nan", "1e400", "\0", "\n", "\x1b[2J", "\ud800", "\udcff", "\u202e", "ä😀"]
TEXTS += ["..", "../a.png", "/etc/passwd", "a" * 300, "a/" * 3000, "%s{}", "one.png", "one.png/x"]
CHANGES = (1, 1, 1, 2, 2, 3, 5)  # how many, one after the other
ODD = [None, [], {}, [[]], [{}], {"": None}, {"id": 1}, *NUMBERS, *TEXTS]


def mutate_tree(rng: Random, tree: Any) -> Any:
    """A copy of plain data with one thing changed."""
    root = [copy.deepcopy(tree)]
    parent, key = rng.choice(_places(root))
    rng.choice(_CHANGES)(rng, root, parent, key)
    return root[0] if root else None


Parent = list | dict


def _places(root: list[Any]) -> list[tuple[Parent, Any]]:
    """Every (container, index or key) below ``root``."""
    places: list[tuple[Parent, Any]] = []
    waiting: list[Any] = [root]
    seen = set()  # YAML's aliases make circles
    while waiting:
        parent = waiting.pop()
        if id(parent) in seen:
            continue
        seen.add(id(parent))
        for key, value in parent.items() if isinstance(parent, dict) else enumerate(parent):
            places.append((parent, key))
            if isinstance(value, list | dict):
                waiting.append(value)
    return places


def _replace(rng: Random, root: list[Any], parent: Parent, key: Any) -> None:
    parent[key] = rng.choice(ODD)


def _retype(rng: Random, root: list[Any], parent: Parent, key: Any) -> None:
    value = parent[key]
    parent[key] = rng.choice([str(value)[:400], [value], {"": value}, value is None, [value] * 2])


def _shift(rng: Random, root: list[Any], parent: Parent, key: Any) -> None:
    value = parent[key]
    if isinstance(value, str):
        at = rng.randrange(len(value) + 1)
        parent[key] = value[:at] + rng.choice(TEXTS) + value[at:]
    elif isinstance(value, int | float):
        other = rng.choice(NUMBERS)
        try:
            parent[key] = rng.choice([value + other, value * other, -value, float(value)])
        except OverflowError:
            parent[key] = other
    else:
        parent[key] = rng.choice(ODD)


def _delete(rng: Random, root: list[Any], parent: Parent, key: Any) -> None:
    del parent[key]


def _repeat(rng: Random, root: list[Any], parent: Parent, key: Any) -> None:
    if isinstance(parent, dict):
        parent[rng.choice(["", "x", "id", f"{key}2"])] = copy.deepcopy(parent[key])
    else:
        parent[key:key] = [copy.deepcopy(parent[key]) for _ in range(rng.choice([1, 1, 2, 20]))]


def _rename(rng: Random, root: list[Any], parent: Parent, key: Any) -> None:
    if isinstance(parent, dict):
        value = parent.pop(key)
        parent[rng.choice([*TEXTS, str(key).upper(), f"{key} ", str(key)[:-1]])] = value
    else:
        rng.shuffle(parent)


def _swap(rng: Random, root: list[Any], parent: Parent, key: Any) -> None:
    other, place = rng.choice(_places(root))
    parent[key], other[place] = copy.deepcopy(other[place]), copy.deepcopy(parent[key])


def _nest(rng: Random, root: list[Any], parent: Parent, key: Any) -> None:
    value = parent[key]
    for _ in range(rng.choice([1, 3, 50, 150])):  # deeper ones are made of text
        value = [value] if rng.random() < 0.5 else {"a": value}
    parent[key] = value


_CHANGES = [_replace, _replace, _retype, _shift, _shift, _delete, _repeat, _rename, _swap, _nest]
