"""Detectron2's DefaultTrainer with OneNet's optimiser, augmentations and evaluation."""

from __future__ import annotations

import os
from typing import Any

from detectron2.data import build_detection_train_loader
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import COCOEvaluator
from torch import nn
from torch.optim import Optimizer

from ..checkpoint import load_weights
from ..solver import build_optimizer
from .dataset_mapper import OneNetDatasetMapper


class Trainer(DefaultTrainer):
    """Trains and evaluates :class:`~onenet.d2.OneNet`; everything else is Detectron2's."""

    def resume_or_load(self, resume: bool = True) -> None:
        """Go on from the last checkpoint in ``OUTPUT_DIR``, or load ``MODEL.WEIGHTS``.

        Takes the weights that the embedded engine takes: torchvision's ImageNet files, and
        checkpoints with another number of classes.
        """
        if resume and self.checkpointer.has_checkpoint():
            super().resume_or_load(resume=True)
        elif self.cfg.MODEL.WEIGHTS:
            model = getattr(self.model, "module", self.model)
            load_weights(model, self.cfg.MODEL.WEIGHTS, new_classes=True)

    @classmethod
    def build_evaluator(
        cls, cfg: Any, dataset_name: str, output_folder: str | None = None
    ) -> COCOEvaluator:
        return COCOEvaluator(
            dataset_name,
            ("bbox",),
            output_dir=output_folder or os.path.join(cfg.OUTPUT_DIR, "inference"),
            max_dets_per_image=cfg.TEST.DETECTIONS_PER_IMAGE,
        )

    @classmethod
    def build_train_loader(cls, cfg: Any) -> Any:
        return build_detection_train_loader(cfg, mapper=OneNetDatasetMapper(cfg, is_train=True))

    @classmethod
    def build_optimizer(cls, cfg: Any, model: nn.Module) -> Optimizer:
        return build_optimizer(cfg, model)
