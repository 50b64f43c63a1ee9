"""The training loop, iteration by iteration."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from onenet.checkpoints.weights import AVERAGED, load_weights
from onenet.data.dataset import CocoDetection
from onenet.data.unreadable import SkippedImages
from onenet.detector import memory_format
from onenet.errors import WriteError
from onenet.training.accumulation import forward_backward, split
from onenet.training.dump import dump_batch
from onenet.training.ema import ModelEMA, check_same
from onenet.training.guard import Guard
from onenet.training.history import GRADIENT, History, check_finite
from onenet.training.oom import memory_errors, training_advice
from onenet.training.optim import build_optimizer, build_scheduler, lr_factor
from onenet.training.signals import Stopped, StopRequests, stop_at_once

from .build import build_detector
from .checkpoints import Checkpoints
from .config import dump
from .items import TrainItem
from .loader import build_train_loader
from .monitor import Monitor
from .test_sets import draw_all, evaluate_all

logger = logging.getLogger(__name__)
LOG_PERIOD = 20


class Trainer:
    """Trains a config's model on the processes of a launched Fabric.

    The weights after an iteration depend on the config and the seed alone: an interrupted run
    that is resumed ends where an uninterrupted one does.

    Args:
        cfg: frozen.
        fabric: launched; gives device, processes and precision.
        train_sets, test_sets: see :mod:`onenet.data.dataset`.
        resume: go on from the last checkpoint in ``OUTPUT_DIR`` where there is one.
    """

    def __init__(
        self,
        cfg: Any,
        fabric: Fabric,
        *,
        train_sets: list[CocoDetection],
        test_sets: list[CocoDetection],
        resume: bool = False,
    ) -> None:
        self.cfg, self.fabric = cfg, fabric
        self.train_sets, self.test_sets = train_sets, test_sets
        self.skipped = SkippedImages()
        self.output_dir = Path(cfg.OUTPUT_DIR)
        self.checkpoints = Checkpoints(self.output_dir, fabric, cfg.SOLVER.CHECKPOINT_KEEP)
        checkpoint = self.checkpoints.read_last() if resume else None
        self.seed = self._choose_seed(checkpoint)
        torch.manual_seed(self.seed)

        self.model = build_detector(cfg)
        if checkpoint is None and cfg.MODEL.WEIGHTS:
            load_weights(self.model, cfg.MODEL.WEIGHTS, new_classes=True)
        with fabric.autocast():
            self.model.to(fabric.device, memory_format=memory_format(fabric.device))
        average = cfg.MODEL_EMA
        self.ema = ModelEMA(self.model, average.DECAY) if average.ENABLED else None
        self.optimizer = build_optimizer(cfg, self.model, fused=True)
        self.guard = Guard(self.optimizer, self.model, cfg.SOLVER.SKIP_NONFINITE)
        self.scheduler = build_scheduler(cfg, self.optimizer)
        parts = {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler}
        self.parts = parts if self.ema is None else {**parts, "ema": self.ema}
        self.iteration = 0
        if checkpoint is not None:
            check_same(self.ema, checkpoint, self.checkpoints.last)
            self.iteration = self.checkpoints.restore(self.parts, checkpoint)
        # The plain strategy, not Fabric's wrapper, whose conversions refuse frozen dataclasses.
        self.parallel = fabric.strategy.setup_module(self.model)

    def _choose_seed(self, checkpoint: dict[str, Any] | None) -> int:
        seed = (checkpoint or {}).get("seed", self.cfg.SEED)
        if seed < 0:
            seed = self.fabric.broadcast(int(torch.seed()) % 2**31)
            logger.info("SEED %d (drawn)", seed)
        return seed

    def train(self) -> dict[str, float] | None:
        """Run to ``SOLVER.MAX_ITER``, evaluate and save.

        Returns:
            On rank 0 the metrics of the last evaluation, if there was one.

        Raises:
            NonFiniteError: a loss or gradient is NaN or infinite, in more iterations in a row than
                ``SOLVER.SKIP_NONFINITE``; neither the weights nor what was saved before has
                changed by it.
            OutOfMemoryError: names the settings that need less.
            Stopped: by SIGTERM or Ctrl-C, after an iteration that has been saved.
            WriteError: the weights that come out cannot be written.
        """
        monitor = self._monitor()
        try:
            with StopRequests() as requests:
                self._loop(monitor, requests)
            self._save_final()
            self.skipped.report()
            # After the loop, so that a run that was interrupted here is evaluated when resumed.
            return self.evaluate(monitor)
        finally:
            if monitor is not None:
                monitor.close()

    def _loop(self, monitor: Monitor | None, requests: StopRequests) -> None:
        cfg = self.cfg
        batches = self._batches()
        self.model.train()
        history = History(
            self.fabric.device,
            self.iteration,
            tolerated=cfg.SOLVER.SKIP_NONFINITE,
            dump=self._dump,
        )
        losses: list[dict[str, float]] = []
        data_time = 0.0
        while self.iteration < cfg.SOLVER.MAX_ITER:
            start = time.perf_counter()
            batch = next(batches)
            data_time += time.perf_counter() - start
            history.add(self.step(batch), [item.file_name for item in batch])
            self.iteration += 1
            stop = requests.agreed()
            done = self.iteration >= cfg.SOLVER.MAX_ITER
            log = done or self.iteration % LOG_PERIOD == 0
            save = done or stop or self.iteration % cfg.SOLVER.CHECKPOINT_PERIOD == 0
            test = not (done or stop) and _is_due(self.iteration, cfg.TEST.EVAL_PERIOD)
            if history.immediate or log or save or test:
                losses += history.read()
            if monitor is not None:
                monitor.step()
                if log and losses:
                    self._log(monitor, losses, data_time / len(losses))
            if log:
                losses, data_time = [], 0.0
            start = time.perf_counter()
            if save:
                self.save()
            if stop:
                # Which all wait for: no process ends before the first one has saved.
                self.checkpoints.last = self.fabric.broadcast(self.checkpoints.last)
                raise self._stopped(stop)
            if test:
                self._evaluate_meanwhile(monitor, saved=bool(save))
            if monitor is not None:
                monitor.pause(time.perf_counter() - start)
        history.report()

    def _stopped(self, number: int) -> Stopped:
        last = self.checkpoints.last
        then = f"--resume goes on from {last}" if last else "there is no checkpoint to resume from"
        return Stopped(number, f"stopped after iteration {self.iteration}; {then}")

    def step(self, batch: list[TrainItem]) -> dict[str, Tensor]:
        """One iteration on this process' share of the batch.

        Returns:
            Its detached losses and the ``GRADIENT``, all on the device: nothing here waits for it.
        """
        parts = split(batch, self.cfg.SOLVER.ACCUMULATE)
        with memory_errors(self.model, lambda: training_advice(self.cfg)):
            self.guard.keep()
            self.optimizer.zero_grad(set_to_none=True)
            losses = forward_backward(
                self.parallel,
                parts,
                [sum(len(item.targets) for item in part) for part in parts],
                forward=self._forward,
                backward=self.fabric.backward,
            )
            losses[GRADIENT] = self.guard.step()
            self.scheduler.step()
            if self.ema is not None:
                self.ema.update(self.model, self.guard.good)
        return losses

    def _forward(self, items: list[TrainItem]) -> dict[str, Tensor]:
        with self.fabric.autocast():
            return self.parallel([s.image for s in items], [s.targets for s in items])

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

    def _monitor(self) -> Monitor | None:
        if self.fabric.global_rank != 0:
            return None
        return Monitor(
            self.output_dir,
            start_iteration=self.iteration,
            max_iter=self.cfg.SOLVER.MAX_ITER,
            images_per_batch=self.cfg.SOLVER.IMS_PER_BATCH,
        )

    def _batches(self) -> Iterator[list[TrainItem]]:
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

    def _log(self, monitor: Monitor, losses: list[dict[str, float]], data_time: float) -> None:
        names = [name for name in losses[0] if name != GRADIENT]
        means = {name: sum(one[name] for one in losses) / len(losses) for name in names}
        # Not the optimiser's rate, which is that of the next iteration already.
        lr = self.scheduler.base_lrs[-1] * lr_factor(self.cfg, self.iteration - 1)
        monitor.log(self.iteration, means, lr, data_time)

    def save(self) -> None:
        """Write a checkpoint to resume from.

        Raises:
            NonFiniteError: a weight or statistic is NaN or infinite.
        """
        if self.fabric.global_rank != 0:
            return
        check_finite(self.model.state_dict(), self.iteration)
        content = {name: part.state_dict() for name, part in self.parts.items()}
        content |= {"seed": self.seed, "class_names": self.train_sets[0].class_names}
        self.checkpoints.save(self.iteration, content)

    def _save_final(self) -> None:
        content: dict[str, Any] = {
            "model": self.result.state_dict(),
            "class_names": self.train_sets[0].class_names,
        }
        if self.ema is not None:
            content["weights"] = AVERAGED
        path = self.checkpoints.save_final(content)
        kind = "averaged " * (self.ema is not None)
        logger.info("Trained %d iterations; the %sweights are in %s", self.iteration, kind, path)

    @property
    def result(self) -> nn.Module:
        """What is evaluated and comes out at the end: the average, if there is one."""
        return self.model if self.ema is None else self.ema.model

    def evaluate(self, monitor: Monitor | None) -> dict[str, float] | None:
        """Score the model on every test set; curves and pictures go to the monitor."""
        if self.ema is not None and self.test_sets:
            logger.info("Evaluating the averaged weights (MODEL_EMA)")
        metrics = evaluate_all(self.cfg, self.result, self.test_sets)
        if monitor is not None and metrics is not None:
            monitor.write(self.iteration, metrics)
            pictures = draw_all(self.cfg, self.result, self.test_sets)
            monitor.pictures(self.iteration, pictures)
        self.fabric.barrier()
        return metrics

    def _evaluate_meanwhile(self, monitor: Monitor | None, *, saved: bool) -> None:
        """Evaluate between iterations: a signal to the first process stops it at once."""
        try:
            with stop_at_once() if self.fabric.global_rank == 0 else nullcontext():
                self.evaluate(monitor)
        except Stopped as stopped:
            if not saved:
                self.save()
            raise self._stopped(stopped.number) from stopped
        except WriteError as error:
            logger.error("%s. Training goes on", error)
            self.fabric.barrier()


def _is_due(iteration: int, period: int) -> bool:
    return period > 0 and iteration % period == 0
