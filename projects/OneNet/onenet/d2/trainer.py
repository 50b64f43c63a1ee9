"""Detectron2's DefaultTrainer with OneNet's optimiser, augmentations and evaluation."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import DefaultTrainer, HookBase, hooks
from detectron2.evaluation import DatasetEvaluator
from torch import nn
from torch.optim import Optimizer

from ..checkpoint import CheckpointError, find_last_checkpoint, read_checkpoint
from ..ema import ModelEMA, check_same
from ..model import memory_format
from ..solver import build_optimizer
from .config import config_errors
from .datasets import class_names
from .evaluation import build_evaluator
from .loader import SkippingLoader, build_test_loader, build_train_loader
from .steps import in_parts
from .weights import load_weights

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """Trains and evaluates :class:`~onenet.d2.OneNet`; everything else is Detectron2's.

    Checkpoints hold the classes' names, too, as the embedded engine's do, and with ``MODEL_EMA``
    the averaged weights, which are the ones that are evaluated.

    Raises:
        ConfigError: values that do not fit each other.
        DatasetError: something is wrong with the data.
    """

    def __init__(self, cfg: Any) -> None:
        self.ema: ModelEMA | None = None
        with config_errors():
            super().__init__(cfg)
        share_log()
        if cfg.SOLVER.ACCUMULATE > 1:
            self._trainer = in_parts(self._trainer, cfg.SOLVER.ACCUMULATE)
        if self.ema is not None:
            self.checkpointer.add_checkpointable("ema", self.ema)
        names = class_names(cfg.DATASETS.TRAIN[0])
        self.checkpointer.add_checkpointable("class_names", _ClassNames(names))

    def resume_or_load(self, resume: bool = True) -> None:
        """Go on from the last checkpoint in ``OUTPUT_DIR``, or load ``MODEL.WEIGHTS``.

        Takes the weights that the embedded engine takes: torchvision's ImageNet files, and
        checkpoints with another number of classes.

        Raises:
            CheckpointError: the weights are not this model's, or another engine's to resume.
        """
        model = self.bare_model
        last = find_last_checkpoint(Path(self.cfg.OUTPUT_DIR)) if resume else None
        if last is None:
            if resume:
                logger.info("%s holds no checkpoint: starting anew", self.cfg.OUTPUT_DIR)
            if self.cfg.MODEL.WEIGHTS:
                load_weights(model, self.cfg.MODEL.WEIGHTS, new_classes=True)
            if self.ema is not None:
                self.ema.restart(model)
            return
        content = read_checkpoint(last)
        anew = f"or start anew with MODEL.WEIGHTS {last}"
        if "trainer" not in content:
            raise CheckpointError(
                f"{last} holds no state of Detectron2's trainer. Resume with the engine that "
                f"wrote it (--engine lightning), {anew}"
            )
        check_same(self.ema, content, last)
        try:
            model.load_state_dict(content["model"])
            if self.ema is not None:
                self.ema.load_state_dict(content["ema"])
            self.load_state_dict(content["trainer"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"{last} cannot be resumed with this config: {error}. Resume with the config of "
                f"its run, {anew}"
            ) from error
        self.start_iter = self.iter + 1  # the checkpoint names the iteration that was done
        logger.info("Resumed from %s: %d iterations are done", last, self.start_iter)

    @property
    def bare_model(self) -> nn.Module:
        """The model without what several processes wrap around it."""
        return getattr(self.model, "module", self.model)

    def build_hooks(self) -> list[HookBase | None]:
        built = super().build_hooks()
        if not self.cfg.MODEL_EMA.ENABLED:
            return built
        self.ema = ModelEMA(self.bare_model, self.cfg.MODEL_EMA.DECAY)
        evaluation = hooks.EvalHook(self.cfg.TEST.EVAL_PERIOD, self._test_average)
        # First, so that what is saved after an iteration holds it.
        return [
            _Average(),
            *(evaluation if isinstance(hook, hooks.EvalHook) else hook for hook in built),
        ]

    def _test_average(self) -> Any:
        logger.info("Evaluating the averaged weights (MODEL_EMA)")
        self._last_eval_results = self.test(self.cfg, self.ema.model)
        return self._last_eval_results

    @classmethod
    def build_model(cls, cfg: Any) -> nn.Module:
        with config_errors():
            model = super().build_model(cfg)
        return model.to(memory_format=memory_format(torch.device(cfg.MODEL.DEVICE)))

    @classmethod
    def build_evaluator(
        cls, cfg: Any, dataset_name: str, output_folder: str | None = None
    ) -> DatasetEvaluator:
        folder = output_folder or os.path.join(cfg.OUTPUT_DIR, "inference")
        if len(cfg.DATASETS.TEST) > 1:
            folder = os.path.join(folder, dataset_name.replace("/", "_"))
        return build_evaluator(cfg, dataset_name, folder)

    def train(self) -> Any:
        results = super().train()
        if isinstance(loader := self._trainer.data_loader, SkippingLoader):
            loader.skipped.report()
        return results

    @classmethod
    def build_train_loader(cls, cfg: Any) -> Any:
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: Any, dataset_name: str) -> Any:
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def build_optimizer(cls, cfg: Any, model: nn.Module) -> Optimizer:
        return build_optimizer(cfg, model, fused=not cfg.SOLVER.AMP.ENABLED)


class _Average(HookBase):
    def after_step(self) -> None:
        self.trainer.ema.update(self.trainer.bare_model)


class _ClassNames:
    """What Detectron2's checkpointer can save: something with a state."""

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def state_dict(self) -> list[str]:
        return self.names

    def load_state_dict(self, state: list[str]) -> None:
        """The data set's names hold, not the checkpoint's."""


def share_log() -> None:
    """Send what OneNet says where Detectron2's own log goes: the terminal and ``log.txt``."""
    ours, theirs = logging.getLogger("onenet"), logging.getLogger("detectron2")
    ours.handlers[:] = theirs.handlers
    ours.setLevel(logging.INFO)
    ours.propagate = theirs.propagate
