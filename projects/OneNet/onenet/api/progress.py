"""A progress bar where somebody looks: on a terminal, and in a notebook."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm.auto import tqdm


def in_notebook() -> bool:
    """Whether a Jupyter kernel runs this process."""
    return "ipykernel" in sys.modules


def progress(items: Iterable[Any], total: int, unit: str) -> Iterable[Any]:
    """The items, with a bar for more than one of them."""
    hidden = True if total < 2 else (False if in_notebook() else None)
    return tqdm(items, total=total, unit=unit, leave=False, disable=hidden)
