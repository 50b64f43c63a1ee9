"""Detectron2's model of a dump; see :mod:`onenet.training.replay`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from onenet.structures import Targets
from onenet.training.replay import Rebuilt

from .config import load_cfg
from .trainer import Trainer


def rebuild(config_file: Path, opts: Sequence[str]) -> Rebuilt:
    """Build what computes the losses of a config.

    Raises:
        ConfigError: of the file or the overrides.
    """
    cfg = load_cfg(config_file, opts)
    model = Trainer.build_model(cfg)
    model.stop_at_nonfinite = False
    return Rebuilt(
        model=model,
        losses=_losses,
        parts=cfg.SOLVER.ACCUMULATE,
        iterations=cfg.SOLVER.MAX_ITER,
        precision=torch.float16 if cfg.SOLVER.AMP.ENABLED else None,
    )


def _losses(
    model: nn.Module, images: Sequence[Tensor], targets: Sequence[Targets]
) -> dict[str, Tensor]:
    return model([_to_inputs(*pair) for pair in zip(images, targets, strict=True)])


def _to_inputs(image: Tensor, targets: Targets) -> dict[str, object]:
    instances = Instances(
        targets.image_size, gt_boxes=Boxes(targets.boxes), gt_classes=targets.labels
    )
    return {"image": image, "instances": instances}
