"""What ``MODEL.WEIGHTS`` of the library transformers means for the other keys."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from onenet.checkpoints.hub import PREFIX, Published, find_published, read_published
from onenet.checkpoints.hub_config import options_of
from onenet.errors import ConfigError

logger = logging.getLogger(__name__)


def take_published(cfg: Any) -> None:
    """Set ``MODEL.TRANSFORMERS`` as a model of the library needs it, if ``MODEL.WEIGHTS`` is one.

    So a run's config holds all that the run's checkpoints need.

    Raises:
        CheckpointError: the model cannot be had, or is no detector.
        ConfigError: ``MODEL.META_ARCHITECTURE`` is another, or images are prepared otherwise than
            in the training of these weights.
    """
    weights = cfg.MODEL.WEIGHTS
    folder = find_published(weights)
    if folder is None:
        return
    model = read_published(folder)
    name = PREFIX + model.name
    if cfg.MODEL.META_ARCHITECTURE != name:
        raise ConfigError(
            f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE!r}, but MODEL.WEIGHTS "
            f"{weights} is of {name}: set that (configs/baselines has files for some), with the "
            "embedded engine"
        )
    _check_pixels(cfg, weights, model)
    section, options = cfg.MODEL.TRANSFORMERS, options_of(folder, model.name)
    replaced = sorted(set(section.CONFIG) - set(options))
    if replaced:
        logger.info(
            "MODEL.TRANSFORMERS.CONFIG is that of %s; without %s", weights, ", ".join(replaced)
        )
    section.CONFIG = type(cfg)(options, new_allowed=True)
    section.OWN_BACKBONE = True
    section.SIZE = model.side


def _check_pixels(cfg: Any, weights: str, model: Published) -> None:
    if cfg.INPUT.FORMAT != "RGB":
        raise ConfigError(
            f"INPUT.FORMAT is {cfg.INPUT.FORMAT!r}; expected 'RGB', which MODEL.WEIGHTS {weights} "
            "was trained with"
        )
    for key, theirs in (("MEAN", model.mean), ("STD", model.std)):
        values: Sequence[float] = cfg.MODEL[f"PIXEL_{key}"]
        if any(abs(a - b) > 0.5 for a, b in zip(values, theirs, strict=True)):
            shown = ", ".join(f"{value:.3f}" for value in theirs)
            raise ConfigError(
                f"MODEL.PIXEL_{key} is {list(values)}, but MODEL.WEIGHTS {weights} was trained "
                f"with MODEL.PIXEL_{key} '[{shown}]': set that"
            )
