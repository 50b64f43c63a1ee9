"""A progress bar where somebody looks: on a terminal, and in a notebook; needs no torch."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm.auto import tqdm


def in_notebook() -> bool:
    """Whether a Jupyter kernel runs this process."""
    return "ipykernel" in sys.modules


def shown() -> bool:
    """Whether stderr is a terminal, or a notebook shows bars of its own."""
    return in_notebook() or sys.stderr.isatty()


def progress(items: Iterable[Any], *, shows: bool = True, **options: Any) -> Iterable[Any]:
    """The items, with a bar that disappears at their end.

    Args:
        shows: whether to show it at all.
        options: ``tqdm``'s.
    """
    return tqdm(items, leave=False, disable=not (shows and shown()), **options)
