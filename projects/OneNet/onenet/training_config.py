"""The keys of training that Detectron2 does not have, for both engines."""

from __future__ import annotations

from typing import Any

from .yaml_files import ConfigError


def add_training_config(cfg: Any) -> None:
    """Add the keys to a Detectron2-style config, in place."""
    # Parts in which each process computes its share of a batch, one after the other: less memory
    # for the same gradient. Batch norms see a part at a time.
    cfg.SOLVER.ACCUMULATE = 1
    cfg.MODEL_EMA = type(cfg)()
    # Average the weights of all iterations, see onenet.ema; evaluate and save the average.
    cfg.MODEL_EMA.ENABLED = False
    # What is kept of the average in an iteration, once it has warmed up; from 0 to below 1.
    cfg.MODEL_EMA.DECAY = 0.9998


def check_training(cfg: Any, processes: int) -> None:
    """Raise ``ConfigError`` unless batches can be shared evenly and the average has a decay."""
    images, parts = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.ACCUMULATE
    if images % processes:
        raise ConfigError(
            f"SOLVER.IMS_PER_BATCH is {images}, which {processes} processes cannot share evenly: "
            "give a multiple"
        )
    if parts < 1 or images // processes % parts:
        raise ConfigError(
            f"SOLVER.ACCUMULATE is {parts}; expected a divisor of {images // processes}, the "
            "images of SOLVER.IMS_PER_BATCH that each process has"
        )
    if not 0 <= cfg.MODEL_EMA.DECAY < 1:
        raise ConfigError(
            f"MODEL_EMA.DECAY is {cfg.MODEL_EMA.DECAY}; expected a number from 0 to below 1"
        )
