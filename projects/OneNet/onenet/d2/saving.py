"""Detectron2's training loses nothing: complete checkpoints, stops that save, full disks."""

from __future__ import annotations

import logging
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, JSONWriter, get_event_storage
from torch import nn

from onenet.checkpoints.branch import deployed
from onenet.checkpoints.series import (
    add_checkpoint,
    find_checkpoints,
    save_final,
    tag_last_checkpoint,
)
from onenet.files import open_lines, strict_json
from onenet.training.loggers import Loggers
from onenet.training.signals import Stopped, StopRequests, how_it_stopped, stopped_after

logger = logging.getLogger(__name__)


class WholeCheckpointer(DetectionCheckpointer):
    """Writes checkpoints completely or not at all, and removes old ones.

    ``max_to_keep`` of Detectron2's hook would remove the last good one when saving fails.

    Args:
        keep: ``SOLVER.CHECKPOINT_KEEP``.

    Attributes:
        facts: what a checkpoint says about the run, beside its state.
        last: the newest checkpoint, saved or resumed from.
        saved: the last iteration that was saved, counted from 0.
    """

    def __init__(
        self, model: nn.Module, save_dir: str, *, keep: int = 0, **checkpointables: Any
    ) -> None:
        super().__init__(model, save_dir, **checkpointables)
        self.keep = keep
        self.facts: dict[str, Any] = {}
        self.last: Path | None = None
        self.saved: int | None = None

    def save(self, name: str, **kwargs: Any) -> None:
        """See Detectron2. If a checkpoint cannot be written, the log says why.

        ``model_final`` is without a one-to-many branch. If the model has one, a complete checkpoint
        is saved, too: a run that is prolonged goes on from it.

        Raises:
            WriteError: ``model_final`` cannot be written.
        """
        if not (self.save_dir and self.save_to_disk):
            return
        states = {key: part.state_dict() for key, part in self.checkpointables.items()}
        content = {"model": self.model.state_dict(), **states, **self.facts, **kwargs}
        path = Path(self.save_dir) / f"{name}.pth"
        self.logger.info("Saving checkpoint to %s", path)
        if name == "model_final":
            final = deployed(content)
            whole = len(final["model"]) == len(content["model"])
            if not whole and self.saved != kwargs["iteration"]:
                self.save(f"model_{kwargs['iteration']:07d}", **kwargs)
            save_final(path, final, self.last)
            if not whole:
                return
            tag_last_checkpoint(path)
        elif not add_checkpoint(path, content, self.keep):
            return
        self.last, self.saved = path, kwargs.get("iteration")


class StopHook(HookBase):
    """Saves and stops after an iteration on SIGTERM and Ctrl-C; see ``StopRequests``."""

    def __init__(self) -> None:
        self._context = ExitStack()
        self._stopped: Stopped | None = None

    def before_train(self) -> None:
        self._requests = self._context.enter_context(StopRequests())

    def after_step(self) -> None:
        if number := self._requests.agreed():
            self._stopped = stop(self.trainer, number)
            comm.synchronize()  # no process ends before the first one has saved
            raise self._stopped

    def after_train(self) -> None:
        self._context.close()
        if self._stopped is not None:  # before hooks that would evaluate
            raise self._stopped


def stop(trainer: Any, number: int) -> Stopped:
    """Save unless that is done already, and return what to raise.

    Args:
        trainer: Detectron2's, with a :class:`WholeCheckpointer`.
        number: of the signal.
    """
    save_done(trainer)
    return stopped_after(trainer.iter + 1, number, trainer.checkpointer.last)


def save_done(trainer: Any) -> str:
    """Save the last iteration, ``trainer.iter``, unless that is done; says what resuming finds."""
    checkpointer, done = trainer.checkpointer, trainer.iter
    if done >= trainer.start_iter and checkpointer.saved != done:
        checkpointer.save(f"model_{done:07d}", iteration=done)
    last = checkpointer.last
    if not checkpointer.save_to_disk:  # another process does
        last = next(iter(find_checkpoints(Path(checkpointer.save_dir))), None)
    return how_it_stopped(done + 1, last)


class StrictWriter(JSONWriter):
    """Detectron2's ``metrics.json``, but with ``null`` for NaN and infinity, as JSON has neither.

    Args:
        json_file: grows; half a line that a killed run left is removed.
    """

    def __init__(self, json_file: str) -> None:
        open_lines(Path(json_file)).close()
        super().__init__(json_file)

    def write(self) -> None:
        for iteration, values in _newer_than(self._last_write, self._window_size):
            line = strict_json({**values, "iteration": iteration}, sort_keys=True)
            self._file_handle.write(line + "\n")
            self._last_write = iteration
        self._file_handle.flush()


def _newer_than(iteration: int, window: int) -> list[tuple[int, dict[str, float]]]:
    """The latest values after an iteration, by the one that they are of."""
    latest = get_event_storage().latest_with_smoothing_hint(window)
    found: dict[int, dict[str, float]] = defaultdict(dict)
    for name, (value, of) in latest.items():
        if of > iteration:
            found[of][name] = value
    return sorted(found.items())


class LoggersWriter(EventWriter):
    """Gives the values of Detectron2's storage to the core's loggers.

    Attributes:
        loggers: while the run trains; who sets them closes them.
    """

    loggers: Loggers | None = None
    _last_write = -1

    def write(self) -> None:
        if self.loggers is None:
            return
        for iteration, values in _newer_than(self._last_write, window=20):
            self.loggers.log(iteration, values)
            self._last_write = iteration


class ImageDropper(EventWriter):
    """Drops the pictures of Detectron2's storage, which only its TensorBoard writer takes."""

    def write(self) -> None:
        get_event_storage().clear_images()


class GoingOn(EventWriter):
    """Wraps a writer: if its file cannot be written, the log says so once and training goes on."""

    def __init__(self, writer: EventWriter) -> None:
        self.writer = writer
        self._failed = False

    def write(self) -> None:
        self._try(self.writer.write)

    def close(self) -> None:
        self._try(self.writer.close)

    def _try(self, action: Any) -> None:
        try:
            action()
            self._failed = False
        except OSError as error:
            if not self._failed:
                name = type(self.writer).__name__
                logger.error("%s cannot write: %s. Training goes on", name, error.strerror)
            self._failed = True
