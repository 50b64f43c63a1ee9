"""The training loop, iteration by iteration."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor

from onenet.checkpoint import (
    CheckpointError,
    find_last_checkpoint,
    load_weights,
    read_checkpoint,
    save_checkpoint,
    tag_last_checkpoint,
)
from onenet.matcher import NonFiniteError
from onenet.solver import build_optimizer, build_scheduler, lr_factor

from .data import TrainSample, build_train_loader
from .datasets import CocoDetection
from .detector import build_detector
from .evaluation import evaluate
from .monitor import Monitor
from .pictures import validation_pictures

logger = logging.getLogger(__name__)
LOG_PERIOD = 20


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
        self.model.to(fabric.device)
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
        try:
            self.model.load_state_dict(self.checkpoint.pop("model"))
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
            NonFiniteError: a loss is NaN or infinite; what was saved before stays.
        """
        cfg = self.cfg
        monitor = self._monitor()
        samples = self._batches()
        self.model.train()
        losses: list[dict[str, Tensor]] = []
        data_time = 0.0
        try:
            while self.iteration < cfg.SOLVER.MAX_ITER:
                start = time.perf_counter()
                batch = next(samples)
                data_time += time.perf_counter() - start
                losses.append(self.step(batch))
                self.iteration += 1
                done = self.iteration >= cfg.SOLVER.MAX_ITER
                if monitor is not None:
                    monitor.step()
                if self.iteration % LOG_PERIOD == 0 or done:
                    self._log(monitor, losses, data_time / len(losses))
                    losses, data_time = [], 0.0
                start = time.perf_counter()
                if self.iteration % cfg.SOLVER.CHECKPOINT_PERIOD == 0 or done:
                    self.save()
                if not done and _is_due(self.iteration, cfg.TEST.EVAL_PERIOD):
                    self.evaluate(monitor)
                if monitor is not None:
                    monitor.pause(time.perf_counter() - start)
            self._save_final()
            # After the loop, so that a run that was interrupted here is evaluated when resumed.
            return self.evaluate(monitor)
        finally:
            if monitor is not None:
                monitor.close()

    def step(self, batch: list[TrainSample]) -> dict[str, Tensor]:
        """One iteration on this process' share of the batch; returns its detached losses."""
        images = [sample.image for sample in batch]
        targets = [sample.targets for sample in batch]
        try:
            with self.fabric.autocast():
                losses = self.parallel(images, targets)
        except NonFiniteError as error:
            raise NonFiniteError(self._explain(str(error), batch)) from error
        total = sum(losses.values())
        if not torch.isfinite(total):
            terms = [f"{k} = {v.item()}" for k, v in losses.items() if not v.isfinite()]
            raise NonFiniteError(self._explain(", ".join(terms), batch))
        self.optimizer.zero_grad(set_to_none=True)
        self.fabric.backward(total)
        self.optimizer.step()
        self.scheduler.step()
        return {name: loss.detach() for name, loss in losses.items()}

    def _explain(self, what: str, batch: list[TrainSample]) -> str:
        files = ", ".join(sample.file_name for sample in batch)
        return (
            f"iteration {self.iteration + 1}: {what}, on {files}. Training stopped; the last "
            "checkpoint is as it was. A lower SOLVER.BASE_LR, a longer SOLVER.WARMUP_ITERS or "
            "SOLVER.CLIP_GRADIENTS.ENABLED True (CLIP_TYPE full_model) is the usual cure"
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
        return iter(loader)

    def _log(
        self, monitor: Monitor | None, losses: list[dict[str, Tensor]], data_time: float
    ) -> None:
        names = list(losses[0])
        means = torch.stack([torch.stack([one[name] for one in losses]).mean() for name in names])
        if self.fabric.world_size > 1:
            means = self.fabric.all_reduce(means, reduce_op="mean")
        if monitor is not None:
            values = dict(zip(names, means.tolist(), strict=True))
            # Not the optimiser's rate, which is that of the next iteration already.
            lr = self.scheduler.base_lrs[-1] * lr_factor(self.cfg, self.iteration - 1)
            monitor.log(self.iteration, values, lr, data_time)

    def save(self) -> None:
        """Write a checkpoint to resume from, named like Detectron2's by its last iteration."""
        if self.fabric.global_rank != 0:
            return
        path = self.output_dir / f"model_{self.iteration - 1:07d}.pth"
        content = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "iteration": self.iteration - 1,
            "seed": self.seed,
            "class_names": self.train_sets[0].class_names,
        }
        save_checkpoint(path, content)
        tag_last_checkpoint(path)

    def _save_final(self) -> None:
        if self.fabric.global_rank == 0:
            path = self.output_dir / "model_final.pth"
            names = self.train_sets[0].class_names
            save_checkpoint(path, {"model": self.model.state_dict(), "class_names": names})
            logger.info("Trained %d iterations; the weights are in %s", self.iteration, path)
        self.fabric.barrier()

    def evaluate(self, monitor: Monitor | None) -> dict[str, float] | None:
        """Score the model on every test set; curves and pictures go to the monitor."""
        metrics = evaluate_all(self.cfg, self.model, self.test_sets)
        if monitor is not None and metrics is not None:
            monitor.write(self.iteration, metrics)
            for dataset in self.test_sets:
                pictures = validation_pictures(self.cfg, self.model, dataset)
                prefix = _prefix(dataset, self.test_sets)
                monitor.pictures(
                    self.iteration, {prefix + name: image for name, image in pictures.items()}
                )
        self.fabric.barrier()
        return metrics


def _is_due(iteration: int, period: int) -> bool:
    return period > 0 and iteration % period == 0


def _prefix(dataset: CocoDetection, test_sets: list[CocoDetection]) -> str:
    """What tells the figures and files of one test set from those of the others."""
    return dataset.source.name.replace("/", "_") + "/" if len(test_sets) > 1 else ""


def evaluate_all(
    cfg: Any, model: torch.nn.Module, test_sets: list[CocoDetection]
) -> dict[str, float] | None:
    """Score a model on every test set; more than one put their names before the metrics.

    Returns:
        See :func:`~onenet.engine.evaluation.evaluate`; ``None`` without test sets, too.
    """
    metrics: dict[str, float] = {}
    for dataset in test_sets:
        prefix = _prefix(dataset, test_sets)
        folder = Path(cfg.OUTPUT_DIR) / "inference" / prefix
        found = evaluate(cfg, model, dataset, folder)
        metrics.update({prefix + name: value for name, value in (found or {}).items()})
    return metrics or None
