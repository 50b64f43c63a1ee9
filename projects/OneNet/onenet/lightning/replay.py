"""Dumps of the embedded engine, and their models; see :mod:`onenet.training.replay`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import nn

from onenet.config.device import choose_device
from onenet.training.replay import Dump, Rebuilt

from .build import build_detector
from .config import dump, load_cfg
from .samples import TrainSample


def rebuild(config_file: Path, opts: Sequence[str]) -> Rebuilt:
    """What computes the losses of a config.

    Raises:
        ConfigError: of the file or the overrides.
    """
    cfg = load_cfg(config_file, opts)
    return Rebuilt(
        model=build_detector(cfg).to(choose_device(cfg)),
        losses=lambda model, images, targets: model(images, targets),
        parts=cfg.SOLVER.ACCUMULATE,
        precision=torch.bfloat16 if cfg.SOLVER.AMP.ENABLED else None,
    )


def dump_batch(
    cfg: Any,
    fabric: Fabric,
    model: nn.Module,
    seed: int,
    batch: Sequence[TrainSample],
    iteration: int,
    what: str,
) -> Path:
    """Write what an iteration was computed from on this process; see :class:`Dump`."""
    content = Dump(
        iteration=iteration,
        what=what,
        engine="lightning",
        config=dump(cfg),
        seed=seed,
        precision="bfloat16" if cfg.SOLVER.AMP.ENABLED else "float32",
        torch=str(torch.__version__),
        model={name: value.cpu() for name, value in model.state_dict().items()},
        images=[sample.image for sample in batch],
        boxes=[sample.targets.boxes for sample in batch],
        labels=[sample.targets.labels for sample in batch],
        files=[sample.file_name for sample in batch],
    )
    rank = fabric.global_rank if fabric.world_size > 1 else None
    return content.save(Path(cfg.OUTPUT_DIR), rank)
