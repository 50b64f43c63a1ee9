"""The loggers of a run, which ``LOGGERS`` names, for both engines."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from onenet.errors import ConfigError, look_up

from . import curve_files, trackers  # noqa: F401  (they register theirs)
from .run_logger import LOGGER_REGISTRY, LoggedRun, RunLogger

logger = logging.getLogger(__name__)


def check_loggers(cfg: Any) -> None:
    """Raise ``ConfigError`` for an unknown logger, or one whose package is not installed."""
    for name in cfg.LOGGERS:
        needs = getattr(look_up(LOGGER_REGISTRY, "LOGGERS", name), "needs", "")
        try:
            importlib.import_module(needs or "onenet")
        except ImportError as error:
            raise ConfigError(
                f"LOGGERS has {name!r}, which needs the package {needs} ({error}): "
                f"pip install 'onenet[{needs}]'"
            ) from error


class Loggers:
    """The loggers of a run; one that fails does not end the training.

    Args:
        cfg: checked by :func:`check_loggers`.
        run: what they log.
        without: names that something else takes care of.

    Raises:
        ConfigError: a logger cannot start; names it.
    """

    def __init__(self, cfg: Any, run: LoggedRun, without: Collection[str] = ()) -> None:
        self._loggers: dict[str, RunLogger] = {}
        self._failing: set[str] = set()
        for name in dict.fromkeys(cfg.LOGGERS):
            if name in without:
                continue
            try:
                self._loggers[name] = look_up(LOGGER_REGISTRY, "LOGGERS", name)(run)
            except Exception as error:
                self.close(finished=False)
                raise ConfigError(
                    f"LOGGERS: {name} cannot start: {_one_line(error)}. Mend that, or leave "
                    f"{name!r} out of LOGGERS"
                ) from error

    def log(self, iteration: int, values: Mapping[str, float]) -> None:
        """Give all loggers values by name."""
        self._each(lambda one: one.log(iteration, values))

    @property
    def takes_pictures(self) -> bool:
        """Whether one of them does something with pictures."""
        kinds = map(type, self._loggers.values())
        return any(kind.pictures is not RunLogger.pictures for kind in kinds)

    def pictures(self, iteration: int, images: Mapping[str, np.ndarray]) -> None:
        """Give all loggers (H, W, 3) uint8 RGB images by name."""
        self._each(lambda one: one.pictures(iteration, images))

    def close(self, *, finished: bool) -> None:
        """Close all loggers."""
        self._each(lambda one: one.close(finished=finished))
        self._loggers.clear()

    def _each(self, act: Callable[[RunLogger], None]) -> None:
        for name, one in self._loggers.items():
            try:
                act(one)
            except Exception as error:  # a library's own: of the disk, the network, a server
                if name not in self._failing:
                    logger.error("LOGGERS: %s fails: %s. Training goes on", name, _one_line(error))
                self._failing.add(name)
            else:
                if name in self._failing:
                    logger.info("LOGGERS: %s works again", name)
                self._failing.discard(name)


def _one_line(error: Exception) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
