"""The best evaluation of a training (``TEST.BEST_METRIC``), and its early end (``EARLY_STOP``)."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from onenet.checkpoints.files import save_checkpoint
from onenet.errors import ConfigError, WriteError, look_up
from onenet.files import strict_json, write_whole

from .distributed import gather, rank
from .hooks import Hook
from .run_folder import BEST, BEST_RECORD

logger = logging.getLogger(__name__)
# What the names of losses on a test set begin with.
LOSS = "val_"


@dataclass(frozen=True)
class Figure:
    """What an evaluation found.

    Attributes:
        value: of the metric; finite.
        iteration: how many were done.
    """

    value: float
    iteration: int


class Best(Hook):
    """Compares the evaluations of a training, and keeps the weights of the best one.

    A checkpoint holds what has been compared. What ``model_best.pth`` holds stands beside it in
    ``model_best.json``, since the file may be of an evaluation that a resumed run repeats.

    Args:
        run: the run's id.

    Attributes:
        ended: whether ``SOLVER.EARLY_STOP`` ends the training.
    """

    def __init__(self, cfg: Any, run: str = "") -> None:
        super().__init__(cfg)
        self.metric, self.patience = cfg.TEST.BEST_METRIC, cfg.SOLVER.EARLY_STOP
        self.run = run
        self.folder = Path(cfg.OUTPUT_DIR)
        self._lower = False
        self._last = 0  # iterations that were done at the last evaluation
        self._without_gain = 0
        self._best: Figure | None = None
        self._kept: Figure | None = None

    def choose(self, choices: Mapping[str, bool]) -> None:
        """Look up the metric; the first process calls this before training.

        Args:
            choices: the names of all metrics, and whether lower is better.

        Raises:
            ConfigError: the evaluations have no such metric; gives the choices.
        """
        if not self.metric:
            return
        if not choices:
            raise ConfigError(
                f"TEST.BEST_METRIC is {self.metric!r}, but DATASETS.TEST "
                f"{list(self.cfg.DATASETS.TEST)} has no objects to evaluate on"
            )
        self._lower = look_up(choices.items(), "TEST.BEST_METRIC", self.metric)

    def before_train(self) -> None:
        """Find what ``model_best.pth`` holds, also of an evaluation after the last checkpoint."""
        if not self.metric:
            return
        done = self.trainer.iteration
        known = (self._lower, self._read_record()) if rank() == 0 else None
        self._lower, self._kept = gather(known)[0]
        # The last evaluation of a run that is prolonged: its checkpoint was saved before that.
        between = self._kept is not None and self._last < self._kept.iteration <= done
        if between and not self.pending(done):
            self._best, self._last, self._without_gain = self._kept, self._kept.iteration, 0

    def _read_record(self) -> Figure | None:
        if not (self.folder / BEST).is_file():
            return None
        try:
            found = json.loads((self.folder / BEST_RECORD).read_bytes())
            if (found["metric"], found["run"]) == (self.metric, self.run):
                return Figure(float(found["value"]), int(found["iteration"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning(
                "%s does not say what %s holds (%s): the next evaluation replaces that",
                self.folder / BEST_RECORD,
                BEST,
                error,
            )
        return None

    @property
    def ended(self) -> bool:
        return 0 < self.patience <= self._without_gain

    def pending(self, iteration: int) -> bool:
        """Whether the evaluation after so many iterations is due, and not done yet.

        A checkpoint is saved before the evaluation of its iteration.
        """
        period = self.cfg.TEST.EVAL_PERIOD
        return bool(self.metric) and iteration > self._last and iteration % period == 0

    def evaluated(
        self,
        iteration: int,
        metrics: Mapping[str, float] | None,
        weights: Callable[[], Mapping[str, Any]],
    ) -> None:
        """Compare an evaluation with the best one; all processes call this together.

        Args:
            iteration: how many are done; one that is compared already changes nothing.
            metrics: by name, on the first process; ``None``: the evaluation failed.
            weights: gives the content of ``model_best.pth``; the first process calls it.
        """
        if not self.metric or iteration <= self._last:
            return
        value = gather(float((metrics or {}).get(self.metric, math.nan)))[0]
        self._last = iteration
        if not math.isfinite(value):
            self._log(
                logging.WARNING,
                "%s is %s at iteration %d: it counts neither as the best nor as without gain",
                self.metric,
                value,
                iteration,
            )
            return
        found = Figure(value, iteration)
        if self._is_better(found, self._best):
            self._best, self._without_gain = found, 0
        else:
            self._without_gain += 1
        if self._is_better(found, self._kept):
            self._kept = gather(self._keep(found, weights) if rank() == 0 else None)[0]
        self._tell(found)

    def _is_better(self, found: Figure, other: Figure | None) -> bool:
        if other is None:
            return True
        return found.value < other.value if self._lower else found.value > other.value

    def _keep(self, found: Figure, weights: Callable[[], Mapping[str, Any]]) -> Figure | None:
        """Write the weights; returns what the file then holds."""
        record = {"metric": self.metric, **asdict(found)}
        try:
            save_checkpoint(self.folder / BEST, {**weights(), "best": record})
            text = strict_json({**record, "run": self.run})
            write_whole(self.folder / BEST_RECORD, f"{text}\n".encode())
        except WriteError as error:
            logger.error("%s. Training goes on; the next better evaluation tries again", error)
            return self._kept
        return found

    def _tell(self, found: Figure) -> None:
        now = "" if found == self._best else f"{self._words(found)}; "
        count = f"; {self._without_gain} of {self.patience} evaluations in a row without gain"
        self._log(
            logging.INFO,
            "%sbest so far: %s%s",
            now,
            self.summary(),
            count * bool(self.patience and self._without_gain),
        )

    def _words(self, figure: Figure) -> str:
        return f"{self.metric} {figure.value:.4g} at iteration {figure.iteration}"

    def summary(self) -> str:
        """The best evaluation, and where its weights are."""
        path = self.folder / BEST
        told = self._words(self._best)
        if self._kept == self._best:
            return f"{told}, kept in {path}"
        if self._kept is None:
            return f"{told}, whose weights are not kept"
        return f"{told}; {path} holds {self._words(self._kept)}"

    def report(self) -> None:
        """Log the best evaluation at the end of the training, and why it ended early."""
        if self.ended:
            self._log(
                logging.INFO,
                "SOLVER.EARLY_STOP %d: training ended after iteration %d of %d, as %d evaluations "
                "in a row were without gain",
                self.patience,
                self._last,
                self.cfg.SOLVER.MAX_ITER,
                self._without_gain,
            )
        if self._best is not None:
            self._log(logging.INFO, "Best of all evaluations: %s", self.summary())

    def _log(self, level: int, *words: Any) -> None:
        if rank() == 0:
            logger.log(level, *words)

    def state_dict(self) -> dict[str, Any]:
        if not self.metric or not self._last:
            return {}
        return {
            "metric": self.metric,
            "iteration": self._last,
            "best": self._best and asdict(self._best),
            "without_gain": self._without_gain,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["metric"] != self.metric:
            if self.metric:
                logger.info("The best evaluation is sought again, by %s", self.metric)
            return
        self._last, self._without_gain = state["iteration"], state["without_gain"]
        self._best = state["best"] and Figure(**state["best"])
