"""Rules for one value of a config, from which :mod:`onenet.config.rules` makes its tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from onenet.errors import ConfigError

Test = Callable[[Any], bool]
Rule = tuple[str, Test, str]  # dotted key, what a good value passes, and what to expect


def number(value: Any) -> bool:
    """A finite number."""
    return type(value) in (int, float) and math.isfinite(value)


def at_least(low: float) -> Test:
    """A finite number from ``low`` on."""
    return lambda value: number(value) and value >= low


def above(low: float) -> Test:
    """A finite number above ``low``."""
    return lambda value: number(value) and value > low


def whole(low: int, high: float = math.inf) -> Test:
    """A list of whole numbers from ``low`` to ``high``, not empty."""
    return lambda values: bool(values) and all(type(v) is int and low <= v <= high for v in values)


def numbers(count: int, low: float = -math.inf) -> Test:
    """A list of ``count`` numbers above ``low``."""
    return lambda values: len(values) == count and all(map(above(low), values))


def up_to(most: int) -> tuple[Test, str]:
    """A whole number from 1 to ``most``, and its words."""
    return lambda value: 1 <= value <= most, f"a whole number above 0, {most} at most"


def rows(values: Any) -> bool:
    """A list of lists of positive numbers, none of them empty."""
    return bool(values) and all(
        isinstance(row, Sequence) and bool(row) and all(above(0)(v) and v <= MOST for v in row)
        for row in values
    )


def ranges(values: Any) -> bool:
    """A list of pairs, the smaller number first; infinity is allowed."""
    return all(
        isinstance(pair, Sequence)
        and len(pair) == 2
        and all(type(v) in (int, float) for v in pair)
        and pair[0] < pair[1]
        for pair in values
    )


def texts(values: Any) -> bool:
    """A list of texts, none of them empty."""
    return all(isinstance(value, str) and bool(value) for value in values)


def some_of(choices: Sequence[str]) -> Test:
    """A list of different names among the choices, not empty."""
    return lambda values: (
        bool(values) and texts(values) and len(values) == len({*values} & {*choices})
    )


def rising(values: Any) -> bool:
    """A list of rising whole numbers above 0, which may be empty."""
    return not values or whole(1)(values) and list(values) == sorted(set(values))


def rising_from_0(values: Any) -> bool:
    """A list of rising whole numbers from 0 on, which may be empty."""
    return not values or whole(0)(values) and list(values) == sorted(set(values))


def span(values: Any) -> bool:
    """Nothing, or two rising numbers from 0 to 1."""
    return not values or (
        len(values) == 2 and all(map(number, values)) and 0 <= values[0] < values[1] <= 1
    )


def one_of(key: str, *choices: Any) -> Rule:
    """The rule of a key that takes one of the choices."""
    return key, lambda value: value in choices, f"one of {', '.join(map(repr, choices))}"


def each(section: str, keys: str, test: Test, expected: str) -> list[Rule]:
    """The same rule for several keys of a section, which are separated by spaces."""
    return [(f"{section}.{key}", test, expected) for key in keys.split()]


def require(good: bool, key: str, value: Any, expected: str) -> None:
    """Raise ``ConfigError``, which gives the key, its value and what is expected, unless good."""
    if not good:
        raise ConfigError(f"{key} is {value!r}; expected {expected}")


MOST = 1_000_000  # more than any trained network has; far larger numbers overflow
POSITIVE = (lambda value: value >= 1, "a whole number above 0")
SIZE, LAYERS = up_to(MOST), up_to(1000)
ROWS = (rows, f"lists of numbers above 0, {MOST} at most")
NATURAL = (lambda value: value >= 0, "a whole number from 0 on")
NOT_NEGATIVE = (at_least(0), "a number from 0 on")
SHARE = (lambda value: 0 <= value <= 1, "a number from 0 to 1")
TEXTS = (texts, "a list of names")
