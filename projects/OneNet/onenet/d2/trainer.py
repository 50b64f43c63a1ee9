"""Detectron2's DefaultTrainer with OneNet's optimiser, augmentations and evaluation."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import COCOEvaluator
from torch import nn
from torch.optim import Optimizer

from ..checkpoint import CheckpointError, find_last_checkpoint, read_checkpoint
from ..datasets import DatasetError
from ..solver import build_optimizer
from ..yaml_files import ConfigError
from .dataset_mapper import OneNetDatasetMapper
from .datasets import class_names
from .evaluation import build_evaluator
from .weights import load_weights

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """Trains and evaluates :class:`~onenet.d2.OneNet`; everything else is Detectron2's.

    Checkpoints hold the classes' names, too, as the embedded engine's do.

    Raises:
        ConfigError: values that do not fit each other.
        DatasetError: something is wrong with the data.
    """

    def __init__(self, cfg: Any) -> None:
        with _config_errors():
            super().__init__(cfg)
        share_log()
        names = class_names(cfg.DATASETS.TRAIN[0])
        self.checkpointer.add_checkpointable("class_names", _ClassNames(names))

    def resume_or_load(self, resume: bool = True) -> None:
        """Go on from the last checkpoint in ``OUTPUT_DIR``, or load ``MODEL.WEIGHTS``.

        Takes the weights that the embedded engine takes: torchvision's ImageNet files, and
        checkpoints with another number of classes.

        Raises:
            CheckpointError: the weights are not this model's, or another engine's to resume.
        """
        model = getattr(self.model, "module", self.model)
        last = find_last_checkpoint(Path(self.cfg.OUTPUT_DIR)) if resume else None
        if last is None:
            if resume:
                logger.info("%s holds no checkpoint: starting anew", self.cfg.OUTPUT_DIR)
            if self.cfg.MODEL.WEIGHTS:
                load_weights(model, self.cfg.MODEL.WEIGHTS, new_classes=True)
            return
        content = read_checkpoint(last)
        anew = f"or start anew with MODEL.WEIGHTS {last}"
        if "trainer" not in content:
            raise CheckpointError(
                f"{last} holds no state of Detectron2's trainer. Resume with the engine that "
                f"wrote it (--engine lightning), {anew}"
            )
        try:
            model.load_state_dict(content["model"])
            self.load_state_dict(content["trainer"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"{last} cannot be resumed with this config: {error}. Resume with the config of "
                f"its run, {anew}"
            ) from error
        self.start_iter = self.iter + 1  # the checkpoint names the iteration that was done
        logger.info("Resumed from %s: %d iterations are done", last, self.start_iter)

    @classmethod
    def build_model(cls, cfg: Any) -> nn.Module:
        with _config_errors():
            return super().build_model(cfg)

    @classmethod
    def build_evaluator(
        cls, cfg: Any, dataset_name: str, output_folder: str | None = None
    ) -> COCOEvaluator:
        folder = output_folder or os.path.join(cfg.OUTPUT_DIR, "inference")
        if len(cfg.DATASETS.TEST) > 1:
            folder = os.path.join(folder, dataset_name.replace("/", "_"))
        return build_evaluator(cfg, dataset_name, folder)

    @classmethod
    def build_train_loader(cls, cfg: Any) -> Any:
        return build_detection_train_loader(cfg, mapper=OneNetDatasetMapper(cfg, is_train=True))

    @classmethod
    def build_test_loader(cls, cfg: Any, dataset_name: str) -> Any:
        mapper = OneNetDatasetMapper(cfg, is_train=False)
        return build_detection_test_loader(cfg, dataset_name, mapper=mapper)

    @classmethod
    def build_optimizer(cls, cfg: Any, model: nn.Module) -> Optimizer:
        return build_optimizer(cfg, model)


@contextmanager
def _config_errors() -> Iterator[None]:
    """What a constructor says of a value becomes a ``ConfigError``, which the program prints."""
    try:
        yield
    except (ConfigError, DatasetError):
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error


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
