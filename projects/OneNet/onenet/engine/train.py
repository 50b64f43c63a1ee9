"""The training loop, iteration by iteration."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from onenet.accumulation import forward_backward, split
from onenet.checkpoint import (
    AVERAGED,
    CheckpointError,
    find_last_checkpoint,
    load_weights,
    read_checkpoint,
    save_checkpoint,
    tag_last_checkpoint,
)
from onenet.ema import ModelEMA, check_same
from onenet.matcher import NonFiniteError
from onenet.model import memory_format
from onenet.skipping import SkippedImages
from onenet.solver import build_optimizer, build_scheduler, guarded_step, lr_factor

from .data import TrainSample, build_train_loader
from .datasets import CocoDetection
from .detector import build_detector
from .history import History, check_finite, diverged
from .monitor import Monitor
from .test_sets import draw_all, evaluate_all

logger = logging.getLogger(__name__)
LOG_PERIOD = 20
GRADIENT = "gradient norm"  # among the losses of an iteration


class Trainer:
    """Trains a config's model on the processes of a launched Fabric.

    The weights after an iteration depend on the config and the seed alone: an interrupted run
    that is resumed ends where an uninterrupted one does.

    Args:
        cfg: frozen.
        fabric: launched; gives device, processes and precision.
        train_sets, test_sets: see :mod:`onenet.engine.datasets`.
        resume: go on from ``last_checkpoint`` in ``OUTPUT_DIR`` where there is one.
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
        last = find_last_checkpoint(self.output_dir) if resume else None
        first_machines = fabric.broadcast(last and last.name)
        if (last and last.name) != first_machines:
            raise CheckpointError(
                f"cannot resume: the first machine has {first_machines or 'no checkpoint'} in "
                f"{self.output_dir}, this one {last.name if last else 'none'}; OUTPUT_DIR must be "
                "on a disk that all machines share"
            )
        self.checkpoint = read_checkpoint(last) if last is not None else {}
        self.seed = self._choose_seed()
        torch.manual_seed(self.seed)

        self.model = build_detector(cfg)
        if last is None and cfg.MODEL.WEIGHTS:
            load_weights(self.model, cfg.MODEL.WEIGHTS, new_classes=True)
        with fabric.autocast():
            self.model.to(fabric.device, memory_format=memory_format(fabric.device))
        average = cfg.MODEL_EMA
        self.ema = ModelEMA(self.model, average.DECAY) if average.ENABLED else None
        self.optimizer = build_optimizer(cfg, self.model, fused=True)
        self.scheduler = build_scheduler(cfg, self.optimizer)
        self.iteration = 0
        if last is not None:
            self._restore(last)
        elif resume:
            logger.info("%s holds no checkpoint: starting anew", self.output_dir)
        # The plain strategy, not Fabric's wrapper, whose conversions refuse frozen dataclasses.
        self.parallel = fabric.strategy.setup_module(self.model)

    def _choose_seed(self) -> int:
        seed = self.checkpoint.get("seed", self.cfg.SEED)
        if seed < 0:
            seed = self.fabric.broadcast(int(torch.seed()) % 2**31)
            logger.info("SEED %d (drawn)", seed)
        return seed

    def _restore(self, path: Path) -> None:
        check_same(self.ema, self.checkpoint, path)
        try:
            self.model.load_state_dict(self.checkpoint.pop("model"))
            if self.ema is not None:
                self.ema.load_state_dict(self.checkpoint.pop("ema"))
            self.optimizer.load_state_dict(self.checkpoint["optimizer"])
            self.scheduler.load_state_dict(self.checkpoint["scheduler"])
            self.iteration = self.checkpoint["iteration"] + 1
        except (KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"{path} cannot be resumed with this config: {error}. Resume with the config of "
                "its run, or start anew with MODEL.WEIGHTS set to it"
            ) from error
        self.checkpoint.clear()
        logger.info("Resumed from %s: %d iterations are done", path, self.iteration)

    def train(self) -> dict[str, float] | None:
        """Run to ``SOLVER.MAX_ITER``, evaluate and save.

        Returns:
            On rank 0 the metrics of the last evaluation, if there was one.

        Raises:
            NonFiniteError: a loss or gradient is NaN or infinite; neither the weights nor what
                was saved before has changed by it.
        """
        cfg = self.cfg
        monitor = self._monitor()
        samples = self._batches()
        self.model.train()
        history = History(self.fabric, self.iteration)
        losses: list[dict[str, float]] = []
        data_time = 0.0
        try:
            while self.iteration < cfg.SOLVER.MAX_ITER:
                start = time.perf_counter()
                batch = next(samples)
                data_time += time.perf_counter() - start
                history.add(self.step(batch), [sample.file_name for sample in batch])
                self.iteration += 1
                done = self.iteration >= cfg.SOLVER.MAX_ITER
                log = done or self.iteration % LOG_PERIOD == 0
                save = done or self.iteration % cfg.SOLVER.CHECKPOINT_PERIOD == 0
                test = not done and _is_due(self.iteration, cfg.TEST.EVAL_PERIOD)
                if history.immediate or log or save or test:
                    losses += history.read()
                if monitor is not None:
                    monitor.step()
                    if log:
                        self._log(monitor, losses, data_time / len(losses))
                if log:
                    losses, data_time = [], 0.0
                start = time.perf_counter()
                if save:
                    self.save()
                if test:
                    self.evaluate(monitor)
                if monitor is not None:
                    monitor.pause(time.perf_counter() - start)
            self._save_final()
            self.skipped.report()
            # After the loop, so that a run that was interrupted here is evaluated when resumed.
            return self.evaluate(monitor)
        finally:
            if monitor is not None:
                monitor.close()

    def step(self, batch: list[TrainSample]) -> dict[str, Tensor]:
        """One iteration on this process' share of the batch.

        Returns:
            Its detached losses and the ``GRADIENT``, all on the device: nothing here waits for it.
        """
        parts = split(batch, self.cfg.SOLVER.ACCUMULATE)
        self.optimizer.zero_grad(set_to_none=True)
        losses = forward_backward(
            self.parallel,
            parts,
            [sum(len(sample.targets) for sample in part) for part in parts],
            forward=self._forward,
            backward=self.fabric.backward,
        )
        losses[GRADIENT] = guarded_step(self.optimizer, self.model)
        self.scheduler.step()
        if self.ema is not None:
            self.ema.update(self.model)
        return losses

    def _forward(self, samples: list[TrainSample]) -> dict[str, Tensor]:
        try:
            with self.fabric.autocast():
                return self.parallel([s.image for s in samples], [s.targets for s in samples])
        except NonFiniteError as error:  # of a matcher that looks at its costs
            files = [sample.file_name for sample in samples]
            raise diverged(self.iteration + 1, str(error), files) from error

    def _monitor(self) -> Monitor | None:
        if self.fabric.global_rank != 0:
            return None
        return Monitor(
            self.output_dir,
            start_iteration=self.iteration,
            max_iter=self.cfg.SOLVER.MAX_ITER,
            images_per_batch=self.cfg.SOLVER.IMS_PER_BATCH,
        )

    def _batches(self) -> Iterator[list[TrainSample]]:
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.SEED = self.seed
        loader = build_train_loader(
            cfg,
            self.train_sets,
            rank=self.fabric.global_rank,
            world_size=self.fabric.world_size,
            start_iteration=self.iteration,
        )
        return self.skipped.watch(loader, lambda sample: sample.skipped)

    def _log(self, monitor: Monitor, losses: list[dict[str, float]], data_time: float) -> None:
        names = [name for name in losses[0] if name != GRADIENT]
        means = {name: sum(one[name] for one in losses) / len(losses) for name in names}
        # Not the optimiser's rate, which is that of the next iteration already.
        lr = self.scheduler.base_lrs[-1] * lr_factor(self.cfg, self.iteration - 1)
        monitor.log(self.iteration, means, lr, data_time)

    def save(self) -> None:
        """Write a checkpoint to resume from, named like Detectron2's by its last iteration.

        Raises:
            NonFiniteError: a weight or statistic is NaN or infinite.
        """
        if self.fabric.global_rank != 0:
            return
        check_finite(self.model.state_dict(), self.iteration)
        path = self.output_dir / f"model_{self.iteration - 1:07d}.pth"
        content = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "iteration": self.iteration - 1,
            "seed": self.seed,
            "class_names": self.train_sets[0].class_names,
        }
        if self.ema is not None:
            content["ema"] = self.ema.state_dict()
        save_checkpoint(path, content)
        tag_last_checkpoint(path)

    def _save_final(self) -> None:
        if self.fabric.global_rank == 0:
            path = self.output_dir / "model_final.pth"
            content: dict[str, Any] = {
                "model": self.result.state_dict(),
                "class_names": self.train_sets[0].class_names,
            }
            if self.ema is not None:
                content["weights"] = AVERAGED
            save_checkpoint(path, content)
            kind = "averaged " * (self.ema is not None)
            logger.info(
                "Trained %d iterations; the %sweights are in %s", self.iteration, kind, path
            )
        self.fabric.barrier()

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


def _is_due(iteration: int, period: int) -> bool:
    return period > 0 and iteration % period == 0
