"""The embedded engine's model of a dump; see :mod:`onenet.training.replay`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from onenet.config.device import choose_device
from onenet.training.replay import Rebuilt

from .build import build_detector
from .config import load_cfg


def rebuild(config_file: Path, opts: Sequence[str]) -> Rebuilt:
    """Build what computes the losses of a config.

    Raises:
        ConfigError: of the file or the overrides.
    """
    cfg = load_cfg(config_file, opts)
    return Rebuilt(
        model=build_detector(cfg, training=True).to(choose_device(cfg)),
        losses=lambda model, images, targets: model(images, targets),
        parts=cfg.SOLVER.ACCUMULATE,
        iterations=cfg.SOLVER.MAX_ITER,
        precision=torch.bfloat16 if cfg.SOLVER.AMP.ENABLED else None,
    )
