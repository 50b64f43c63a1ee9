"""Evaluation within a training of Detectron2: what it measures, compares and keeps."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from typing import Any

from detectron2.engine import hooks
from detectron2.utils import comm

from onenet.checkpoints.weights import result_of
from onenet.errors import DataWorkerError, WriteError
from onenet.training.distributed import share_buffers
from onenet.training.signals import Stopped, stop_at_once
from onenet.training.step import without_wrapper

from .evaluation import all_losses, named
from .saving import save_done, stop

logger = logging.getLogger(__name__)


class Evaluate(hooks.EvalHook):
    """Evaluates every ``TEST.EVAL_PERIOD`` iterations, and the result, as Detectron2's hook does.

    A run that was interrupted in an evaluation makes up for it when resumed.

    Args:
        period: iterations; 0: at the end only.
    """

    def __init__(self, period: int) -> None:
        super().__init__(period, self._evaluate)
        self._done_at = -1  # iterations at the last evaluation since this start

    def before_train(self) -> None:
        trainer, done = self.trainer, self.trainer.start_iter
        if done < trainer.max_iter and not trainer.best.ended and trainer.best.pending(done):
            trainer.iter = trainer.storage.iter = done - 1  # the last one that is done
            self._do_eval()
            trainer.iter = trainer.storage.iter = done

    def _evaluate(self) -> Any:
        """The metrics for Detectron2's log, once all processes have compared them.

        ``None`` if they are in it, at the end of a training that ends early.
        """
        trainer, done = self.trainer, self.trainer.core_hooks.iteration
        if done == self._done_at:
            return None
        found, losses = self._test(done)
        trainer._last_eval_results, self._done_at = found, done
        metrics = None
        if comm.is_main_process() and found is not None:
            metrics = {**named(found, trainer.cfg.DATASETS.TEST), **losses}
        trainer.best.evaluated(done, metrics, self._weights)
        return None if found is None else {**found, **losses}

    def _weights(self) -> dict[str, Any]:
        ema, facts = self.trainer.ema, self.trainer.checkpointer.facts
        model = self.trainer.bare_model if ema is None else ema.model
        names, config = facts["class_names"], facts["config"]
        content = result_of(model, names, config, averaged=ema is not None)
        return {**content, "run": facts["run"]}

    def _test(self, done: int) -> tuple[Any, dict[str, float]]:
        """Evaluate; a signal to the first process does not wait for the end of it.

        Returns:
            Detectron2's metrics, ``None`` where files cannot be written, and ``TEST.LOSS``.
        """
        trainer, cfg = self.trainer, self.trainer.cfg
        if trainer.ema is not None:
            logger.info("Evaluating the averaged weights (MODEL_EMA)")
        losses: dict[str, float] = {}
        over = trainer.iter >= trainer.max_iter
        try:
            with stop_at_once() if comm.is_main_process() else nullcontext():
                model = trainer.model if trainer.ema is None else trainer.ema.model
                share_buffers(model)
                if cfg.TEST.LOSS:
                    progress = done / cfg.SOLVER.MAX_ITER
                    losses = all_losses(cfg, without_wrapper(model), progress)
                return trainer.test(cfg, model), losses
        except Stopped as stopped:
            raise stopped if over else stop(trainer, stopped.number) from None
        except DataWorkerError as error:
            if over:
                raise
            raise DataWorkerError(f"{error}. Training {save_done(trainer)}") from error
        except (OSError, WriteError) as error:
            told = f"the evaluation's files could not be written: {error}"
            if over:
                raise WriteError(told) from error
            logger.error("%s. Training goes on", told)
            return None, {}
