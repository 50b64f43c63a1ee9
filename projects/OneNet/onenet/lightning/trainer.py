"""The training loop, iteration by iteration; :mod:`.hooks` has what happens around it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from onenet.checkpoints.changes import flat
from onenet.checkpoints.resume import check_resumable, restore
from onenet.checkpoints.weights import load_weights, result_of
from onenet.data.dataset import CocoDetection
from onenet.data.unreadable import SkippedImages
from onenet.errors import DataWorkerError
from onenet.ops.deform import allow_tf32
from onenet.ops.memory_format import memory_format
from onenet.structures import send
from onenet.training.best import Best
from onenet.training.dump import dump_batch
from onenet.training.ema import ModelEMA
from onenet.training.guard import Guard
from onenet.training.history import History, check_finite
from onenet.training.hooks import Average, Hook, HookStates, build_hooks
from onenet.training.loggers import check_loggers
from onenet.training.optim import build_optimizer, build_scheduler
from onenet.training.run_folder import RunFolder
from onenet.training.signals import how_it_stopped
from onenet.training.step import train_step

from .build import build_detector
from .checkpoints import Checkpoints
from .config import dump, get_cfg, load_cfg
from .hooks import Evaluate, Log, ReportSkipped, Save, Stop
from .items import TrainItem
from .loader import build_train_loader
from .monitor import Monitor
from .test_sets import all_directions

logger = logging.getLogger(__name__)


class Trainer:
    """Trains a config's model on the processes of a launched Fabric.

    The weights after an iteration depend on the config and the seed alone: a run that is
    interrupted and resumed ends exactly where an uninterrupted one does.

    Args:
        cfg: frozen.
        fabric: launched; gives device, processes and precision.
        train_sets, test_sets: see :mod:`onenet.data.dataset`.
        run_folder: the run and its folder.
        resume: continue from the run's last checkpoint if there is one.

    Attributes:
        hooks: called around every step, in this order.
        best: the best evaluation so far.
        cleanup: closes what hooks open for the time of the training, however it ends.
        iteration: how many are done.
        values: losses and gradient norm of the last step, see :func:`train_step`.
        losses: values that were read since the last line of the log.
        data_time: seconds spent waiting for data since then.
        facts: what a checkpoint says about the run, beside its state.
        monitor: of the first process, while it trains.
        metrics: of the last evaluation, on the first process.

    Raises:
        CheckpointError: the checkpoint or the weights do not fit the config.
        ConfigError: values that do not fit each other, or an unknown hook.
    """

    def __init__(
        self,
        cfg: Any,
        fabric: Fabric,
        *,
        train_sets: list[CocoDetection],
        test_sets: list[CocoDetection],
        run_folder: RunFolder,
        resume: bool = False,
    ) -> None:
        self.cfg, self.fabric = cfg, fabric
        self.train_sets, self.test_sets = train_sets, test_sets
        self.is_first = fabric.global_rank == 0
        self.run_folder, self.output_dir = run_folder, run_folder.path
        self.checkpoints = Checkpoints(run_folder, fabric, cfg.SOLVER.CHECKPOINT_KEEP)
        self.facts = {
            "class_names": train_sets[0].class_names,
            "images": sum(map(len, train_sets)),
            "config": flat(cfg),
        }
        checkpoint = self.checkpoints.read_last() if resume else None
        if checkpoint is not None:
            check_resumable(
                checkpoint, self.checkpoints.last, self.facts, get_cfg, load_cfg, detectron2=False
            )
        self.seed = self._choose_seed(checkpoint)
        torch.manual_seed(self.seed)

        self.model = build_detector(cfg, training=True)
        if checkpoint is None and cfg.MODEL.WEIGHTS:
            names = self.facts["class_names"]
            load_weights(self.model, cfg.MODEL.WEIGHTS, new_classes=True, class_names=names)
        if cfg.SOLVER.AMP.ENABLED:
            allow_tf32(fabric.device)
        with fabric.autocast():
            self.model.to(fabric.device, memory_format=memory_format(fabric.device))
        # MPS cannot be trusted to skip a step of a fused optimiser.
        self.optimizer = build_optimizer(cfg, self.model, fused=fabric.device.type != "mps")
        self.guard = Guard(self.optimizer, self.model, cfg.SOLVER.SKIP_NONFINITE)
        self.scheduler = build_scheduler(cfg, self.optimizer)
        self.ema = ModelEMA(self.model, cfg.MODEL_EMA.DECAY) if cfg.MODEL_EMA.ENABLED else None
        self.best = Best(cfg, run_folder.run)
        if self.is_first:
            check_loggers(cfg)
        if self.is_first and cfg.TEST.BEST_METRIC:
            self.best.choose(all_directions(cfg, self.model, test_sets))
        own = {**build_hooks(cfg), "TEST.BEST_METRIC": self.best}
        self.hooks: list[Hook] = [
            *([Average(cfg, self.ema)] if self.ema is not None else []),
            *own.values(),
            Log(cfg),
            Stop(cfg),
            Save(cfg),
            ReportSkipped(cfg),
            Evaluate(cfg),
        ]
        self.parts: dict[str, Any] = {
            "model": self.model,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            **({"ema": self.ema} if self.ema is not None else {}),
        }
        self.hook_states = HookStates(own)
        self.iteration = 0
        if checkpoint is not None:
            self.iteration = restore(self.parts, checkpoint, self.checkpoints.last)
            self.hook_states.load_state_dict(checkpoint.get("hooks", {}))
        # The plain strategy, not Fabric's wrapper, whose conversions refuse frozen dataclasses.
        self.parallel = fabric.strategy.setup_module(self.model)

        self.skipped = SkippedImages()
        self.history = History(
            fabric.device, self.iteration, tolerated=cfg.SOLVER.SKIP_NONFINITE, dump=self._dump
        )
        self.values: dict[str, Tensor] = {}
        self.losses: list[dict[str, float]] = []
        self.data_time = 0.0
        self.monitor: Monitor | None = None
        self.metrics: dict[str, float] | None = None
        self._saved_at: int | None = None

    def _choose_seed(self, checkpoint: dict[str, Any] | None) -> int:
        seed = (checkpoint or {}).get("seed", self.cfg.SEED)
        if seed < 0:
            seed = self.fabric.broadcast(int(torch.seed()) % 2**31)
            logger.info("SEED %d (drawn)", seed)
        return seed

    @property
    def done(self) -> bool:
        """Whether the last iteration is done."""
        return self.iteration >= self.cfg.SOLVER.MAX_ITER or self.best.ended

    @property
    def result(self) -> nn.Module:
        """What is evaluated and saved at the end: the average, if there is one."""
        return self.model if self.ema is None else self.ema.model

    def train(self) -> dict[str, float] | None:
        """Run to ``SOLVER.MAX_ITER``, or to an early stop, evaluate and save.

        Returns:
            On the first process the metrics of the last evaluation, if there was one.

        Raises:
            DataWorkerError: a process that loads data failed; what was done has been saved.
            NonFiniteError: a loss or gradient is NaN or infinite in more iterations in a row than
                ``SOLVER.SKIP_NONFINITE``. Weights and earlier checkpoints are unchanged.
            OutOfMemoryError: names the settings that need less.
            Stopped: by SIGTERM or Ctrl-C, after an iteration that has been saved.
            WriteError: ``model_final.pth`` cannot be written.
        """
        with ExitStack() as self.cleanup:
            for hook in self.hooks:
                hook.trainer = self
                hook.before_train()
            try:
                self._run()
            except DataWorkerError as error:
                raise DataWorkerError(f"{error}. Training {self._save_alone()}") from error
        return self.metrics

    def _run(self) -> None:
        batches = iter(self._batches())
        self.model.train()
        while not self.done:
            for hook in self.hooks:
                hook.before_step()
            start = time.perf_counter()
            batch = next(batches)
            self.data_time += time.perf_counter() - start
            # What a network draws, such as dropout, is then the same after an interruption.
            torch.manual_seed(self.seed + 1 + self.iteration)
            self.values = self.step(batch)
            self.history.add(self.values, [item.file_name for item in batch])
            self.iteration += 1
            for hook in self.hooks:
                hook.after_step()
        for hook in self.hooks:
            hook.at_end()

    def _save_alone(self) -> str:
        """Save between two iterations, without the other processes; says what resuming finds."""
        if self.values:  # after a step
            if self.fabric.world_size == 1:
                self.read_losses()
            self._write()
        return how_it_stopped(self.iteration, self.checkpoints.newest())

    def step(self, batch: list[TrainItem]) -> dict[str, Tensor]:
        """One iteration on this process' share of the batch; see :func:`train_step`."""
        values = train_step(
            self.cfg,
            self.parallel,
            self.guard,
            batch,
            count=lambda item: len(item.targets),
            forward=self._forward,
            backward=self.fabric.backward,
        )
        self.scheduler.step()
        return values

    def _forward(self, items: Sequence[TrainItem]) -> dict[str, Tensor]:
        # Several processes' wrapper would send each image with a copy that blocks.
        images = [send(item.image, self.fabric.device) for item in items]
        with self.fabric.autocast():
            return self.parallel(images, [item.targets for item in items])

    def _batches(self) -> Iterable[list[TrainItem]]:
        loader = self._loader(self.iteration, self.cfg.DATALOADER.NUM_WORKERS)
        return self.skipped.watch(loader, lambda item: item.skipped)

    def _loader(self, start_iteration: int, workers: int) -> Iterable[list[TrainItem]]:
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.SEED, cfg.DATALOADER.NUM_WORKERS = self.seed, workers
        return build_train_loader(
            cfg,
            self.train_sets,
            rank=self.fabric.global_rank,
            world_size=self.fabric.world_size,
            start_iteration=start_iteration,
        )

    def _dump(self, iteration: int, what: str) -> Path:
        # The stream of batches is the same every time.
        (batch,) = islice(self._loader(iteration - 1, workers=0), 1)
        return dump_batch(
            self.output_dir,
            self.model,
            [(item.image, item.targets, item.file_name) for item in batch],
            iteration=iteration,
            what=what,
            engine="lightning",
            config=dump(self.cfg),
            seed=self.seed,
            precision="bfloat16" if self.cfg.SOLVER.AMP.ENABLED else "float32",
        )

    def read_losses(self) -> None:
        """Wait for the device and add the values of every iteration since to ``losses``.

        All processes call this in the same iterations.

        Raises:
            NonFiniteError: see :meth:`train`.
        """
        self.losses += self.history.read()

    def save(self) -> None:
        """Write a checkpoint to resume from, at most once an iteration; all processes call this.

        Raises:
            NonFiniteError: a loss, weight or statistic is NaN or infinite.
        """
        self.read_losses()
        self._write()

    def _write(self) -> None:
        if not self.is_first or self._saved_at == self.iteration:
            return
        self._saved_at = self.iteration
        check_finite(self.model.state_dict(), self.iteration)
        content = {name: part.state_dict() for name, part in self.parts.items()}
        content |= {"seed": self.seed, **self.facts}
        if states := self.hook_states.state_dict():
            content["hooks"] = states
        self.checkpoints.save(self.iteration, content)

    def weights(self) -> dict[str, Any]:
        """The result as it is now, as the content of a checkpoint."""
        names, config = self.facts["class_names"], self.facts["config"]
        content = result_of(self.result, names, config, averaged=self.ema is not None)
        return {**content, "run": self.run_folder.run}

    def save_final(self) -> None:
        """Write the result, without what only resuming needs."""
        path = self.checkpoints.save_final(self.weights())
        kind = "averaged " * (self.ema is not None)
        logger.info("Trained %d iterations; the %sweights are in %s", self.iteration, kind, path)
