"""The keys of training that Detectron2 does not have, for both engines."""

from __future__ import annotations

import os
from typing import Any

import torch

from onenet.errors import ConfigError


def add_training_config(cfg: Any) -> None:
    """Add the keys to a Detectron2-style config, in place."""
    # Parts in which each process computes its share of a batch, one after the other: less memory
    # for the same gradient. Batch norms see a part at a time.
    cfg.SOLVER.ACCUMULATE = 1
    # Checkpoints of a run that stay, the newest; older ones are removed. 0: all.
    cfg.SOLVER.CHECKPOINT_KEEP = 0
    # Iterations in a row with a loss or gradient that is NaN or infinite that are skipped: they
    # leave the model as it was. One more stops training; 0 stops at once.
    cfg.SOLVER.SKIP_NONFINITE = 0
    cfg.MODEL_EMA = type(cfg)()
    # Average the weights of all iterations, see onenet.training.ema; evaluate and save the average.
    cfg.MODEL_EMA.ENABLED = False
    # What is kept of the average in an iteration, once it has warmed up; from 0 to below 1.
    cfg.MODEL_EMA.DECAY = 0.9998
    # Deterministic algorithms where CUDA has them, and a warning where it has not; slower.
    cfg.CUDNN_DETERMINISTIC = False
    # Features of your own around the iterations, names of a file of --import (docs/hooks.md).
    cfg.HOOKS = []


def check_training(cfg: Any, processes: int) -> None:
    """Raise ``ConfigError`` for values of training that cannot be honoured, or not together."""
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
    if cfg.SOLVER.SKIP_NONFINITE < 0:
        raise ConfigError(
            f"SOLVER.SKIP_NONFINITE is {cfg.SOLVER.SKIP_NONFINITE}; expected a whole number from 0 "
            "on"
        )
    if cfg.CUDNN_DETERMINISTIC and cfg.CUDNN_BENCHMARK:
        raise ConfigError(
            "CUDNN_DETERMINISTIC and CUDNN_BENCHMARK are both True; expected one of them: "
            "benchmarks choose other algorithms in every run"
        )
    if cfg.SOLVER.CHECKPOINT_KEEP < 0:
        raise ConfigError(
            f"SOLVER.CHECKPOINT_KEEP is {cfg.SOLVER.CHECKPOINT_KEEP}; expected how many "
            "checkpoints to keep, or 0 for all"
        )
    if not all(isinstance(name, str) for name in cfg.HOOKS):
        raise ConfigError(f"HOOKS is {list(cfg.HOOKS)}; expected a list of names")
    if not 0 <= cfg.MODEL_EMA.DECAY < 1:
        raise ConfigError(
            f"MODEL_EMA.DECAY is {cfg.MODEL_EMA.DECAY}; expected a number from 0 to below 1"
        )


def make_deterministic(cfg: Any) -> None:
    """Do what ``CUDNN_DETERMINISTIC`` says, for this process.

    Before anything is computed on CUDA: cuBLAS reads its part of it once.
    """
    torch.backends.cudnn.deterministic = cfg.CUDNN_DETERMINISTIC
    torch.use_deterministic_algorithms(cfg.CUDNN_DETERMINISTIC, warn_only=True)
    if cfg.CUDNN_DETERMINISTIC:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # It would fill what torch.empty() gives, which nothing here reads.
        torch.utils.deterministic.fill_uninitialized_memory = False
