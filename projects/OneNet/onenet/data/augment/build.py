"""From ``INPUT.AUGMENTATIONS`` to what augments the images of a training."""

from __future__ import annotations

import ast
import inspect
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onenet.errors import ConfigError, did_you_mean, look_up

# The modules register what they define.
from . import colour, geometry, mixing  # noqa: F401
from .item import Item
from .registry import AUGMENTATION_REGISTRY, Draw

logger = logging.getLogger(__name__)
KEY = "INPUT.AUGMENTATIONS"


@dataclass(frozen=True)
class Augmentations:
    """The augmentations of a training, in order.

    Attributes:
        entries: see :class:`Augmentation`.
        weak_from: iteration from which on the strong ones are left out; the first is 0.
    """

    entries: tuple[Callable[..., Item], ...]
    weak_from: int

    def __bool__(self) -> bool:
        return bool(self.entries)

    def rest(self, cfg: Any) -> tuple[str, bool]:
        """What INPUT.RANDOM_FLIP and INPUT.CROP.ENABLED leave to do after the list.

        A flip of the same direction, or a crop, in the list takes their place; the log says so.
        """
        done = {getattr(entry, "replaces", "") for entry in self.entries}
        flip, crop = cfg.INPUT.RANDOM_FLIP, cfg.INPUT.CROP.ENABLED
        if f"RANDOM_FLIP {flip}" in done:
            logger.info("%s has a %s flip, in place of INPUT.RANDOM_FLIP", KEY, flip)
            flip = "none"
        if crop and "CROP" in done:
            logger.info("%s has a crop, in place of INPUT.CROP", KEY)
            crop = False
        return flip, crop

    def __call__(self, item: Item, iteration: int, random: np.random.Generator, draw: Draw) -> Item:
        """Augment an item; see :meth:`Augmentation.__call__`.

        Args:
            iteration: that trains on the item, counted from 0.

        Raises:
            ConfigError: an entry, of a user's, gave something else than an item.
        """
        for entry in self.at(iteration):
            item = entry(item, random, draw)
            if problem := _problem(item):
                raise ConfigError(f"{KEY}: {entry!r:.200} gave {problem}")
        return item

    def at(self, iteration: int) -> list[Callable[..., Item]]:
        """The entries that are on in an iteration, counted from 0."""
        weak = iteration >= self.weak_from
        return [one for one in self.entries if not (weak and getattr(one, "strong", False))]


def build_augmentations(cfg: Any) -> Augmentations:
    """What ``INPUT.AUGMENTATIONS`` and ``INPUT.AUGMENTATIONS_OFF`` say.

    Raises:
        ConfigError: an unknown name or parameter, or a value out of its range; says what there is.
    """
    entries: dict[str, Any] = {}
    for text in cfg.INPUT.AUGMENTATIONS:
        entry = build_augmentation(text)
        if repr(entry) in entries:
            raise ConfigError(f"{KEY} has {text!r} twice; once is enough")
        entries[repr(entry)] = entry
    weak_from = round(cfg.SOLVER.MAX_ITER * (1 - cfg.INPUT.AUGMENTATIONS_OFF))
    return Augmentations(tuple(entries.values()), weak_from)


def build_augmentation(text: str) -> Callable[..., Item]:
    """One augmentation, from ``"flip"`` or ``"scale_jitter(0.5, high=2)"``.

    Raises:
        ConfigError: see :func:`build_augmentations`.
    """
    name, values, keywords = _parse(text)
    entry = look_up(AUGMENTATION_REGISTRY, KEY, name)
    signature = inspect.signature(entry)
    for keyword in keywords:
        if keyword not in signature.parameters:
            raise ConfigError(
                f"{KEY}: {text!r}: {name} has no parameter {keyword!r}"
                f"{did_you_mean(keyword, signature.parameters)}; expected {described(name)}"
            )
    try:
        signature.bind(*values, **keywords)
    except TypeError as error:
        raise ConfigError(f"{KEY}: {text!r}: {error}; expected {described(name)}") from error
    try:
        return entry(*values, **keywords)
    except ValueError as error:
        raise ConfigError(f"{KEY}: {text!r}: {error}") from error


def _problem(item: Any) -> str:
    """What is wrong with what an augmentation gave; "" if nothing is."""
    if not isinstance(item, Item):
        return f"{type(item).__name__}; expected an item, such as dataclasses.replace(item, …)"
    image = item.image
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape[2:] != (3,):
        what = f"{getattr(image, 'dtype', type(image).__name__)} {tuple(np.shape(image))}"
        return f"an image of {what}; expected a NumPy array uint8 (H, W, 3)"
    counts = [len(rows) for rows in (item.boxes, item.labels, *item.extras.values())]
    if item.boxes.shape[1:] != (4,) or len(set(counts)) > 1:
        return (
            f"boxes of shape {tuple(item.boxes.shape)} with {counts[1:]} labels and extras; "
            "expected (M, 4), and M of each: item.keep(rows) takes them together"
        )
    return "" if item.boxes.isfinite().all() else "boxes that are not finite"


def described(name: str) -> str:
    """A registered augmentation with its parameters and their defaults, as one writes it."""
    parameters = inspect.signature(AUGMENTATION_REGISTRY.get(name)).parameters.values()
    words = (p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters)
    return f"{name}({', '.join(words)})"


def _parse(text: str) -> tuple[str, Sequence[Any], dict[str, Any]]:
    """The name of an augmentation, its values by position, and those by keyword."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        call = tree if isinstance(tree, ast.Call) else ast.Call(tree, [], [])
        if not isinstance(call.func, ast.Name) or any(k.arg is None for k in call.keywords):
            raise ValueError
        values = [_value(node) for node in call.args]
        return call.func.id, values, {str(k.arg): _value(k.value) for k in call.keywords}
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError) as error:
        raise ConfigError(
            f"{KEY} has {text!r:.200}; expected a name, perhaps with parameters, such as 'flip', "
            "'flip(vertical)' or 'scale_jitter(0.5, high=2)'"
        ) from error


def _value(node: ast.expr) -> Any:
    """A plain value; a bare word is text. Nothing is executed."""
    return node.id if isinstance(node, ast.Name) else ast.literal_eval(node)
