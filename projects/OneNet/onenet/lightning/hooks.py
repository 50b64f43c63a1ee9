"""The embedded trainer's own hooks, in the order in which they are called."""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack, nullcontext
from typing import TYPE_CHECKING

from onenet.errors import WriteError
from onenet.training.distributed import share_buffers
from onenet.training.history import GRADIENT
from onenet.training.hooks import Hook
from onenet.training.loggers import Loggers
from onenet.training.optim import lr_factor
from onenet.training.run_logger import LoggedRun
from onenet.training.signals import Stopped, StopRequests, stop_at_once, stopped_after

from .config import dump
from .monitor import Monitor
from .test_sets import all_losses, draw_all, evaluate_all

if TYPE_CHECKING:
    from .trainer import Trainer

logger = logging.getLogger(__name__)
LOG_PERIOD = 20  # iterations


class _Hook(Hook):
    trainer: Trainer


class Log(_Hook):
    """Reads the losses, and writes their means to the log and the curves.

    Only the first process has a ``Monitor``; all read, as the means are over all of them.
    """

    def before_train(self) -> None:
        trainer = self.trainer
        if trainer.is_first:
            loggers = Loggers(self.cfg, self._logged())
            trainer.monitor = Monitor(
                trainer.output_dir,
                start_iteration=trainer.iteration,
                max_iter=self.cfg.SOLVER.MAX_ITER,
                images_per_batch=self.cfg.SOLVER.IMS_PER_BATCH,
                loggers=loggers,
            )
            trainer.cleanup.push(self._close)
        self._idle_since = time.perf_counter()

    def _logged(self) -> LoggedRun:
        trainer = self.trainer
        return LoggedRun(
            folder=trainer.output_dir,
            id=trainer.run_folder.run,
            iteration=trainer.iteration,
            config=trainer.facts["config"],
            text=dump(self.cfg),
        )

    def _close(self, error: type[BaseException] | None, *_: object) -> None:
        self.trainer.monitor.close(finished=error is None)

    def before_step(self) -> None:
        self._leave_out_pause()

    def _leave_out_pause(self) -> None:
        if self.trainer.monitor is not None:
            self.trainer.monitor.pause(time.perf_counter() - self._idle_since)

    def after_step(self) -> None:
        trainer, monitor = self.trainer, self.trainer.monitor
        due = trainer.done or trainer.iteration % LOG_PERIOD == 0
        if due or trainer.history.immediate:
            trainer.read_losses()
        if monitor is not None:
            monitor.step()
            if due and trainer.losses:
                self._log(monitor)
        if due:
            trainer.losses, trainer.data_time = [], 0.0
        self._idle_since = time.perf_counter()

    def _log(self, monitor: Monitor) -> None:
        trainer, losses = self.trainer, self.trainer.losses
        names = [name for name in losses[0] if name != GRADIENT]
        means = {name: sum(one[name] for one in losses) / len(losses) for name in names}
        # Not the optimiser's rate, which is already that of the next iteration.
        lr = trainer.scheduler.base_lrs[-1] * lr_factor(self.cfg, trainer.iteration - 1)
        monitor.log(trainer.iteration, means, lr, trainer.data_time / len(losses))

    def at_end(self) -> None:
        trainer, monitor = self.trainer, self.trainer.monitor
        if monitor is not None and trainer.losses:  # training ended early
            self._leave_out_pause()
            self._log(monitor)
        trainer.history.report()


class Stop(_Hook):
    """Saves and stops after the iteration in which any process gets SIGTERM or Ctrl-C."""

    def before_train(self) -> None:
        self._handlers = self.trainer.cleanup.enter_context(ExitStack())
        self._requests = self._handlers.enter_context(StopRequests())

    def after_step(self) -> None:
        trainer = self.trainer
        if number := self._requests.agreed():
            trainer.save()
            trainer.checkpoints.wait()  # no process ends before the first one has saved
            raise stopped_after(trainer.iteration, number, trainer.checkpoints.last)

    def at_end(self) -> None:
        self._handlers.close()  # from here on a signal ends the program at once


class Save(_Hook):
    """Saves every ``SOLVER.CHECKPOINT_PERIOD`` iterations, after the last one, and the result."""

    def after_step(self) -> None:
        if self.trainer.done or self.trainer.iteration % self.cfg.SOLVER.CHECKPOINT_PERIOD == 0:
            self.trainer.save()

    def at_end(self) -> None:
        self.trainer.save_final()


class ReportSkipped(_Hook):
    """Lists the images that could not be read, once training is over."""

    def at_end(self) -> None:
        self.trainer.skipped.report()


class Evaluate(_Hook):
    """Evaluates every ``TEST.EVAL_PERIOD`` iterations, and the result.

    The last of all hooks: a run that is interrupted in an evaluation makes up for it when resumed.
    """

    _done_at = -1  # iterations at the last evaluation since this start

    def before_train(self) -> None:
        trainer = self.trainer
        if not trainer.done and trainer.best.pending(trainer.iteration):
            self._on_the_way()

    def after_step(self) -> None:
        trainer, period = self.trainer, self.cfg.TEST.EVAL_PERIOD
        if not trainer.done and period and trainer.iteration % period == 0:
            trainer.read_losses()
            self._on_the_way()

    def _on_the_way(self) -> None:
        trainer = self.trainer
        trainer.metrics = None
        try:
            # A signal to the first process does not wait for the evaluation.
            with stop_at_once() if trainer.is_first else nullcontext():
                self._evaluate()
        except Stopped as error:
            trainer.save()
            last = trainer.checkpoints.last
            raise stopped_after(trainer.iteration, error.number, last) from error
        except WriteError as error:
            logger.error("%s. Training goes on", error)
        self._compare()
        if trainer.best.ended:
            trainer.save()

    def at_end(self) -> None:
        if self._done_at != self.trainer.iteration:
            self._evaluate()
            self._compare()
        self.trainer.best.report()

    def _evaluate(self) -> None:
        trainer, test_sets = self.trainer, self.trainer.test_sets
        if trainer.ema is not None and test_sets:
            logger.info("Evaluating the averaged weights (MODEL_EMA)")
        share_buffers(trainer.result)
        losses: dict[str, float] = {}
        if self.cfg.TEST.LOSS:
            progress = trainer.iteration / self.cfg.SOLVER.MAX_ITER
            losses = all_losses(self.cfg, trainer.result, test_sets, progress)
        metrics = evaluate_all(self.cfg, trainer.result, test_sets)
        if trainer.monitor is not None and test_sets:
            trainer.metrics = {**(metrics or {}), **losses} or None
            if trainer.metrics is not None:
                trainer.monitor.write(trainer.iteration, trainer.metrics)
            if trainer.monitor.takes_pictures:
                pictures = draw_all(self.cfg, trainer.result, test_sets)
                trainer.monitor.pictures(trainer.iteration, pictures)

    def _compare(self) -> None:
        """Once the first process has scored and drawn."""
        trainer = self.trainer
        trainer.fabric.barrier()
        self._done_at = trainer.iteration
        trainer.best.evaluated(trainer.iteration, trainer.metrics, trainer.weights)
