"""What takes the curves of a training, beside ``metrics.json``: what ``LOGGERS`` can name.

A logger of your own needs no change here::

    @LOGGER_REGISTRY.register()
    class Mine(RunLogger):  # LOGGERS '["tensorboard", "Mine"]'
        def log(self, iteration, values): ...
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fvcore.common.registry import Registry

# Values of LOGGERS: ``LoggedRun -> RunLogger``.
LOGGER_REGISTRY = Registry("ONENET_LOGGER")


def register(name: str) -> Callable[[type[RunLogger]], type[RunLogger]]:
    """Decorator: registers under a name that is not a class's."""

    def named(kind: type[RunLogger]) -> type[RunLogger]:
        kind.__name__ = name
        LOGGER_REGISTRY.register(kind)
        return kind

    return named


@dataclass(frozen=True)
class LoggedRun:
    """The run that a logger belongs to.

    Attributes:
        folder: ``OUTPUT_DIR``.
        id: of the run; a resumed run has it, too.
        iteration: how many are done when this start begins.
        config: by dotted key.
        text: the config as YAML.
    """

    folder: Path
    id: str
    iteration: int
    config: Mapping[str, Any]
    text: str


class RunLogger:
    """Takes the values of a training; the first process calls it.

    Any exception but that of the constructor is logged, and training goes on.

    Args:
        run: the run to log, or to go on logging.

    Attributes:
        needs: the package that it is made of, which is an extra of onenet's; empty: none.
    """

    needs = ""

    def __init__(self, run: LoggedRun) -> None:
        self.run = run

    def log(self, iteration: int, values: Mapping[str, float]) -> None:
        """Add values by name, as ``metrics.json`` has them; they may be NaN or infinite."""

    def pictures(self, iteration: int, images: Mapping[str, np.ndarray]) -> None:
        """Add (H, W, 3) uint8 RGB images by name."""

    def close(self, *, finished: bool) -> None:
        """Nothing more comes; ``finished``: training has ended normally."""
