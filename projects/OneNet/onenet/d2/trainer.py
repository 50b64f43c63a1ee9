"""Detectron2's DefaultTrainer with OneNet's optimiser, augmentations and evaluation."""

from __future__ import annotations

import logging
import weakref
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import AMPTrainer, DefaultTrainer, HookBase, hooks
from detectron2.evaluation import DatasetEvaluator, verify_results
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, JSONWriter, TensorboardXWriter
from torch import nn
from torch.optim import Optimizer

from onenet.checkpoints.changes import flat
from onenet.checkpoints.files import read_checkpoint
from onenet.checkpoints.resume import (
    check_resumable,
    own_rates,
    restore,
    start_momentum,
    with_settings,
)
from onenet.errors import DataWorkerError, OneNetError
from onenet.evaluation.results import results_folder
from onenet.inference.tiles import whole_images
from onenet.ops.deform import allow_tf32
from onenet.ops.memory_format import memory_format
from onenet.training.best import Best
from onenet.training.distributed import gather
from onenet.training.ema import ModelEMA
from onenet.training.hooks import Average, build_hooks
from onenet.training.loggers import Loggers, check_loggers
from onenet.training.oom import memory_errors, testing_advice
from onenet.training.optim import build_optimizer
from onenet.training.run_folder import RunFolder
from onenet.training.run_logger import LoggedRun
from onenet.training.step import without_wrapper

from .config import config_errors, get_cfg, load_cfg
from .datasets import class_names
from .evaluating import Evaluate
from .evaluation import all_directions, build_evaluator, check_losses
from .hooks import CoreHooks, EndEarly, EndedEarly
from .loader import AugmentedLoader, SkippingLoader, build_test_loader, build_train_loader
from .predictor import TiledModel
from .saving import (
    GoingOn,
    ImageDropper,
    LoggersWriter,
    StopHook,
    StrictWriter,
    WholeCheckpointer,
    save_done,
)
from .steps import guarded
from .weights import load_weights

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """Trains and evaluates :class:`~onenet.d2.OneNet`; everything else is Detectron2's.

    As in the embedded engine, checkpoints hold the class names too, and with ``MODEL_EMA`` the
    averaged weights, which are the ones that are evaluated.

    Args:
        cfg: the config.
        run_folder: the run and its folder; None: a new run in ``OUTPUT_DIR``, which is not held.

    Raises:
        ConfigError: values that do not fit each other.
        DatasetError: something is wrong with the data.
    """

    def __init__(self, cfg: Any, run_folder: RunFolder | None = None) -> None:
        self.ema: ModelEMA | None = None
        self.run_folder = run_folder or RunFolder(Path(cfg.OUTPUT_DIR))
        self.loggers_writer = LoggersWriter()
        if comm.is_main_process():
            check_loggers(cfg)
        with config_errors():
            super().__init__(cfg)
        share_log()
        check_losses(cfg, self.bare_model)
        if comm.is_main_process() and cfg.TEST.BEST_METRIC:
            self.best.choose(all_directions(cfg, self.bare_model))
        self._trainer = guarded(self._trainer, cfg)
        if self.ema is not None:
            self.checkpointer.add_checkpointable("ema", self.ema)
        self.checkpointer.facts = {
            "class_names": class_names(cfg.DATASETS.TRAIN[0]),
            "config": flat(cfg),
            "run": self.run_folder.run,
        }

    def resume_or_load(self, resume: bool = True) -> None:
        """Continue from the run's last checkpoint, or load ``MODEL.WEIGHTS``.

        Takes the weights that the embedded engine takes: torchvision's ImageNet files, and
        checkpoints with other classes.

        Raises:
            CheckpointError: the weights are not this model's, or the checkpoint is one of the other
                engine or of another config.
        """
        model, facts = self.bare_model, self.checkpointer.facts
        found = self._read_last() if resume else None
        facts["run"] = self.best.run = self.run_folder.run
        if found is None:
            if weights := self.cfg.MODEL.WEIGHTS:
                names = facts["class_names"]
                load_weights(model, weights, new_classes=True, class_names=names)
            if self.ema is not None:
                self.ema.restart(model)
            return
        last, content = found
        check_resumable(content, last, facts, get_cfg, load_cfg, detectron2=True)
        parts = {"model": model, "trainer": self}
        if self.ema is not None:
            parts["ema"] = self.ema
        self.start_iter = restore(parts, content, last)
        self.checkpointer.last = last
        if isinstance(loader := self._trainer.data_loader, AugmentedLoader):
            loader.start_at(self.start_iter)

    def _read_last(self) -> tuple[Path, dict[str, Any]] | None:
        """The checkpoint to resume from, the same on all processes; the first one chooses it."""
        found = self.run_folder.read_last() if comm.is_main_process() else None
        path = gather(found and found[0])[0]
        return found or (path and (path, read_checkpoint(path)))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint's iteration and values, with this run's settings."""
        inner, optimizer = dict(state_dict["_trainer"]), self._trainer.optimizer
        inner["optimizer"] = with_settings(optimizer, inner["optimizer"])
        if isinstance(self._trainer, AMPTrainer):  # a run in float32 has no scaler
            inner.setdefault("grad_scaler", self._trainer.grad_scaler.state_dict())
        with own_rates(self.scheduler):
            super().load_state_dict({**state_dict, "_trainer": inner})
        start_momentum(optimizer)

    @property
    def bare_model(self) -> nn.Module:
        """The model without what several processes wrap around it."""
        return without_wrapper(self.model)

    def build_hooks(self) -> list[HookBase | None]:
        cfg = self.cfg
        # Replaces Detectron2's before a hook keeps a reference to that.
        self.checkpointer = WholeCheckpointer(
            self.model,
            cfg.OUTPUT_DIR,
            keep=cfg.SOLVER.CHECKPOINT_KEEP,
            trainer=weakref.proxy(self),
        )
        own = build_hooks(cfg)
        if cfg.MODEL_EMA.ENABLED:
            self.ema = ModelEMA(self.bare_model, cfg.MODEL_EMA.DECAY)
            own = {"MODEL_EMA": Average(cfg, self.ema), **own}
        self.best = Best(cfg, self.run_folder.run)
        # First, so that a checkpoint of an iteration holds what they did.
        self.core_hooks = CoreHooks({**own, "TEST.BEST_METRIC": self.best})
        built: list[HookBase | None] = [self.core_hooks]
        for hook in super().build_hooks():
            if isinstance(hook, hooks.EvalHook):
                hook = Evaluate(cfg.TEST.EVAL_PERIOD)
                built.append(StopHook())
            built.append(hook)
        return [*built, EndEarly()]

    def build_writers(self) -> list[EventWriter]:
        metrics = str(Path(self.cfg.OUTPUT_DIR) / "metrics.json")
        writers = [
            GoingOn(StrictWriter(metrics) if isinstance(writer, JSONWriter) else writer)
            for writer in super().build_writers()
            if "tensorboard" in self.cfg.LOGGERS or not isinstance(writer, TensorboardXWriter)
        ]
        if "tensorboard" not in self.cfg.LOGGERS:
            writers.append(ImageDropper())
        return [*writers, self.loggers_writer]

    def before_train(self) -> None:
        if comm.is_main_process():
            run = LoggedRun(
                folder=self.run_folder.path,
                id=self.run_folder.run,
                iteration=self.start_iter,
                config=self.checkpointer.facts["config"],
                text=self.cfg.dump(),
            )
            self.loggers_writer.loggers = Loggers(self.cfg, run, without=["tensorboard"])
        super().before_train()

    @classmethod
    def build_model(cls, cfg: Any) -> nn.Module:
        with config_errors():
            model = super().build_model(cfg)
        device = torch.device(cfg.MODEL.DEVICE)
        if cfg.SOLVER.AMP.ENABLED:
            allow_tf32(device)
        return model.to(memory_format=memory_format(device))

    @classmethod
    def build_evaluator(
        cls, cfg: Any, dataset_name: str, output_folder: str | None = None
    ) -> DatasetEvaluator:
        folder = results_folder(cfg.OUTPUT_DIR, dataset_name, cfg.DATASETS.TEST)
        return build_evaluator(cfg, dataset_name, output_folder or str(folder))

    def run_step(self) -> None:
        """See Detectron2; where a process that loads data fails, saves what is done."""
        try:
            super().run_step()
        except DataWorkerError as error:
            self.iter -= 1  # the last one that is done
            raise DataWorkerError(f"{error}. Training {save_done(self)}") from error

    def train(self) -> Any:
        results = None
        try:
            results = super().train()
        except EndedEarly:
            if comm.is_main_process():
                verify_results(self.cfg, self._last_eval_results)
        finally:
            if (loggers := self.loggers_writer.loggers) is not None:
                loggers.close(finished=self.iter >= self.max_iter)
        self.best.report()
        if isinstance(loader := self._trainer.data_loader, SkippingLoader):
            loader.skipped.report()
        if self._trainer.history is not None:
            self._trainer.history.report()
        # Without TEST.EXPECTED_RESULTS, Detectron2 returns nothing.
        return getattr(self, "_last_eval_results", results)

    @classmethod
    def test(cls, cfg: Any, model: nn.Module, evaluators: Any = None) -> Any:
        """See Detectron2; an ``OutOfMemoryError`` names the settings that need less."""
        tiled = TiledModel(cfg, model) if cfg.TEST.TILES else None
        with memory_errors(model, lambda: testing_advice(cfg)):
            if tiled is None:
                return super().test(cfg, model, evaluators)
            results = super().test(whole_images(cfg), tiled, evaluators)
        tiled.log()
        return results

    @classmethod
    def build_train_loader(cls, cfg: Any) -> Any:
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: Any, dataset_name: str) -> Any:
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def build_optimizer(cls, cfg: Any, model: nn.Module) -> Optimizer:
        fused = not cfg.SOLVER.AMP.ENABLED and cfg.MODEL.DEVICE != "mps"
        return build_optimizer(cfg, model, fused=fused)


def share_log() -> None:
    """Send OneNet's log where Detectron2's goes: to the terminal and ``log.txt``."""
    ours, theirs = logging.getLogger("onenet"), logging.getLogger("detectron2")
    ours.handlers[:] = theirs.handlers
    ours.setLevel(logging.INFO)
    ours.propagate = theirs.propagate
    # It would print a traceback of errors that end in a line.
    logging.getLogger("detectron2.engine.train_loop").addFilter(_is_unexplained)


def _is_unexplained(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], OneNetError))
