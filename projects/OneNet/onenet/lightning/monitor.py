"""What a run reports: terminal, ``log.txt``, ``metrics.json`` and its ``LOGGERS``."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import numpy as np
from tqdm import tqdm
from tqdm.auto import tqdm as tqdm_auto

from onenet.errors import drop_stream, print_any_text
from onenet.files import open_lines, strict_json
from onenet.training.loggers import Loggers
from onenet.training.progress import shown

logger = logging.getLogger("onenet")
_FORMAT = logging.Formatter("[%(asctime)s] %(message)s", datefmt="%m/%d %H:%M:%S")


class _TqdmHandler(logging.StreamHandler):
    """Prints log lines above a running progress bar instead of through it.

    Where stdout fails (a pipe that its reader closed, a full disk), training goes on without it.
    """

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "on_bar", False):
            return
        try:
            tqdm.write(self.format(record), file=sys.stdout)
            sys.stdout.flush()
        except OSError as error:
            drop_stream(sys.stdout.fileno())
            logger.warning("stdout takes no more lines (%s): the log goes on in log.txt", error)


class _FileHandler(logging.FileHandler):
    """Reports only once, in one line, that the file cannot be written."""

    failed = False

    def handleError(self, record: logging.LogRecord) -> None:
        if not self.failed:
            print(f"{self.baseFilename}: {sys.exc_info()[1]}", file=sys.stderr, flush=True)
        self.failed = True


def setup_logging(output_dir: Path | None, rank: int = 0) -> None:
    """Send the log of rank 0 to the terminal and ``log.txt``; other ranks log warnings only.

    Args:
        output_dir: folder of ``log.txt``, which grows; ``None``: the terminal alone.
    """
    print_any_text()
    handlers: list[logging.Handler] = [_TqdmHandler()]
    if output_dir is not None and rank == 0:
        output_dir.mkdir(parents=True, exist_ok=True)
        handlers.append(_FileHandler(output_dir / "log.txt", encoding="utf-8"))
    for handler in logger.handlers[:]:
        logger.removeHandler(handler)
        handler.close()
    logger.propagate = False
    logger.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    for handler in handlers:
        handler.setFormatter(_FORMAT)
        logger.addHandler(handler)
    # Lightning's banners report no problem and ask for nothing.
    for name in ("lightning", "lightning.fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)


class Monitor:
    """Curves and progress of a training run; rank 0 writes them.

    If a file cannot be written, the log says so and training continues.

    Args:
        output_dir: gets ``metrics.json``.
        start_iteration, max_iter: of this run.
        images_per_batch: over all processes.
        loggers: get the same values; :meth:`close` closes them.
    """

    def __init__(
        self,
        output_dir: Path,
        *,
        start_iteration: int,
        max_iter: int,
        images_per_batch: int,
        loggers: Loggers | None = None,
    ) -> None:
        self.max_iter = max_iter
        self.images_per_batch = images_per_batch
        self.metrics_file = open_lines(output_dir / "metrics.json")
        self.loggers = loggers
        self.bar = tqdm_auto(
            total=max_iter,
            initial=start_iteration,
            unit="it",
            dynamic_ncols=True,
            disable=not shown(),
            file=sys.stderr,
        )
        self._since = time.perf_counter()
        self._last = start_iteration
        self._failing = False

    def step(self) -> None:
        """Advance the progress bar by one iteration."""
        self.bar.update()

    def log(self, iteration: int, losses: Mapping[str, float], lr: float, data_time: float) -> None:
        """Write the mean losses since the last call to the log and the curves.

        Args:
            iteration: iterations done.
            losses: weighted, by name; their sum is added as ``total_loss``.
            lr: of the head.
            data_time: seconds per iteration spent waiting for data.
        """
        now = time.perf_counter()
        seconds = (now - self._since) / max(1, iteration - self._last)
        self._since, self._last = now, iteration
        values = {
            "total_loss": sum(losses.values()),
            **losses,
            "lr": lr,
            "time": seconds,
            "data_time": data_time,
            "images_per_second": self.images_per_batch / seconds,
        }
        self.write(iteration, values)
        terms = "  ".join(f"{k.removeprefix('loss_')} {v:.3f}" for k, v in losses.items())
        speed = f"{values['images_per_second']:.1f} images/s"
        self.bar.set_postfix_str(f"loss {values['total_loss']:.3f}  {terms}  {speed}")
        left = timedelta(seconds=round(seconds * (self.max_iter - iteration)))
        line = (
            f"iteration {iteration}/{self.max_iter}  eta {left}  "
            f"loss {values['total_loss']:.3f}  {terms}  lr {lr:.3g}  {speed}"
        )
        logger.info(line, extra={"on_bar": not self.bar.disable})

    def write(self, iteration: int, values: Mapping[str, float]) -> None:
        """Add a line to ``metrics.json`` and points to the loggers' curves."""
        with self._going_on():
            self.metrics_file.write(strict_json({"iteration": iteration, **values}) + "\n")
            self.metrics_file.flush()
        if self.loggers is not None:
            self.loggers.log(iteration, values)

    @property
    def takes_pictures(self) -> bool:
        """Whether a logger does something with pictures."""
        return self.loggers is not None and self.loggers.takes_pictures

    def pictures(self, iteration: int, images: Mapping[str, np.ndarray]) -> None:
        """Give the loggers (H, W, 3) uint8 RGB images."""
        if self.loggers is not None:
            self.loggers.pictures(iteration, images)

    @contextmanager
    def _going_on(self) -> Iterator[None]:
        try:
            yield
            self._failing = False
        except OSError as error:
            if not self._failing:
                logger.error("metrics.json cannot be written: %s. Training goes on", error.strerror)
            self._failing = True

    def pause(self, seconds: float) -> None:
        """Leave these seconds out of the speed: they were not spent on training."""
        self._since += seconds

    def close(self, *, finished: bool = True) -> None:
        """Finish the files and the bar.

        Args:
            finished: training has ended normally.
        """
        self.bar.close()
        with self._going_on():
            self.metrics_file.close()
        if self.loggers is not None:
            self.loggers.close(finished=finished)
