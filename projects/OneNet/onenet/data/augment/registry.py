"""What ``INPUT.AUGMENTATIONS`` can name, and what an augmentation is.

One of your own needs no change here (``docs/augmentation.md``)::

    @AUGMENTATION_REGISTRY.register()
    @dataclass(frozen=True)
    class grey_patch(Augmentation):  # "grey_patch", "grey_patch(side=0.3)"
        side: float = number(0.2, least=0.01, most=1)

        def apply(self, item, random, draw):
            return item
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import numpy as np
from fvcore.common.registry import Registry

from .item import Item

# ``parameters -> (item, random, draw) -> item``: the parameters are those that the list gives, and
# the signature says which there are. A wrong one raises ValueError. Entries are called what a
# config calls them, so classes have names of small letters, too.
AUGMENTATION_REGISTRY = Registry("ONENET_AUGMENTATION")

Draw = Callable[[np.random.Generator], Item]


def number(default: float, *, least: float, most: float, kw_only: bool = False) -> Any:
    """A parameter that is a number from ``least`` to ``most``; a field of a dataclass."""
    limits = {"least": least, "most": most}
    return field(default=default, kw_only=kw_only, metadata=limits)


def chance(default: float) -> Any:
    """The parameter ``probability``, which only a keyword gives."""
    return number(default, least=0, most=1, kw_only=True)


def choice(*choices: str) -> Any:
    """A parameter that is one of the given texts, the first one if the config gives none."""
    return field(default=choices[0], metadata={"choices": choices})


@dataclass(frozen=True)
class Augmentation:
    """A random change of an image and its objects; subclasses define :meth:`apply`.

    Attributes:
        probability: how often it is applied, else the item stays as it is.
        strong: it makes images that testing never shows. ``INPUT.AUGMENTATIONS_OFF`` ends it
            before the training ends.
        replaces: what has no effect beside it: "CROP" for INPUT.CROP, "RANDOM_FLIP horizontal" or
            "RANDOM_FLIP vertical" for that INPUT.RANDOM_FLIP.

    Raises:
        ValueError: a parameter is not what :func:`number` or :func:`choice` allows; names it.
    """

    strong: ClassVar[bool] = False
    replaces = ""

    probability: float = chance(1.0)

    def __post_init__(self) -> None:
        for parameter in fields(self):
            _check(parameter.name, getattr(self, parameter.name), parameter.metadata)

    def __call__(self, item: Item, random: np.random.Generator, draw: Draw) -> Item:
        """Augment an item, or return it as it is.

        Args:
            item: stays unchanged.
            random: makes every random choice; seeded by the run's seed and the item's place in
                the training, so that a resumed run and any number of workers see the same.
            draw: another image of the training sets, as read: ``draw(random)``.
        """
        return self.apply(item, random, draw) if random.random() < self.probability else item

    def apply(self, item: Item, random: np.random.Generator, draw: Draw) -> Item:
        """The augmented item; see :meth:`__call__`."""
        raise NotImplementedError


def _check(name: str, value: Any, allowed: Any) -> None:
    if "choices" in allowed and value not in allowed["choices"]:
        expected = f"one of {', '.join(allowed['choices'])}"
    elif "least" in allowed and not (
        type(value) in (int, float)
        and math.isfinite(value)
        and allowed["least"] <= value <= allowed["most"]
    ):
        expected = f"a number from {allowed['least']:g} to {allowed['most']:g}"
    else:
        return
    raise ValueError(f"{name} is {value!r}; expected {expected}")
