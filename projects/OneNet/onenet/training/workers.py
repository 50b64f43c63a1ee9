"""Data workers, ``DATALOADER.NUM_WORKERS``: when one fails, the program ends with one line.

Left to torch, a worker that cannot pass an image on prints a traceback, and the program waits for
that image for ever. One that is killed raises an error wherever the program is, such as in the
middle of a step. And no message names the setting to change.
"""

from __future__ import annotations

import errno
import multiprocessing.queues
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any, NoReturn

from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling

from onenet.data.shared_memory import FOLDER, shared_memory
from onenet.errors import DataWorkerError

from .signals import leave_signals_to_the_first

# Exit statuses of a worker that cannot pass on what it has read.
_FULL, _OTHER = errno.ENOSPC, 1


def init_worker(_: int = 0) -> None:
    """Make a data worker leave signals to the first process, and end if it cannot pass data on.

    A ``worker_init_fn`` of ``DataLoader``.
    """
    leave_signals_to_the_first()
    if hasattr(signal, "SIGBUS"):
        # Of shared memory that is full; torch would print a line of its own.
        signal.signal(signal.SIGBUS, signal.SIG_DFL)
    # Python's own prints a traceback, and the batch never arrives.
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_end_undelivered)


def _end_undelivered(error: Exception, _: Any) -> NoReturn:
    full = "No space left on device" in str(error) or getattr(error, "errno", 0) == errno.ENOSPC
    if not full:
        traceback.print_exception(error)
        sys.stderr.flush()
    os._exit(_FULL if full else _OTHER)


class Watched:
    """A loader whose workers may fail: the next batch raises an error that says what to do.

    Between batches nothing is raised, so that a step which has begun is completed.

    Args:
        loader: its ``worker_init_fn`` calls :func:`init_worker`.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        """The loader's batches.

        Raises:
            DataWorkerError: a worker cannot be started, was killed, or cannot pass images on.
        """
        if self.loader.num_workers == 0:
            yield from self.loader
            return
        try:
            with _half_made():
                batches = iter(self.loader)
        except OSError as error:
            raise self._failed(f"data workers cannot be started: {error.strerror}") from error
        _CHILDREN.take_over()
        workers = batches._workers
        while True:
            try:
                with _CHILDREN.heard():
                    # torch hears of an end once, and not at all of one that Python has noticed.
                    if any(worker.exitcode for worker in workers):
                        raise EOFError
                    batch = next(batches)
            except StopIteration:
                return
            except (RuntimeError, OSError, EOFError, MemoryError) as error:
                if what := _what_failed(error, workers):
                    _abandon(batches)
                    raise self._failed(what) from error
                raise
            yield batch

    def _failed(self, what: str) -> DataWorkerError:
        return DataWorkerError(
            f"{what} (DATALOADER.NUM_WORKERS {self.loader.num_workers}). {shared_memory()}. Fewer "
            "DATALOADER.NUM_WORKERS need less memory; with 0, this process loads the data itself"
        )


def _abandon(batches: Any) -> None:
    """Kill the workers instead of asking them to end, once one of them has died.

    torch would wait for the lock of an event that it shares with them, and a worker that was killed
    may hold it for ever.
    """
    batches._shutdown = True
    for worker in batches._workers:
        worker.kill()
        worker.join()
    signal_handling._remove_worker_pids(id(batches))
    batches._worker_pids_set = False


@contextmanager
def _half_made() -> Iterator[None]:
    """A context to start workers in: if it fails, torch cannot clean up, and Python warns of it."""
    try:
        yield
    except OSError:
        before = sys.unraisablehook

        def warn(problem: Any) -> None:
            if not isinstance(problem.exc_value, AttributeError):
                before(problem)

        sys.unraisablehook = warn
        raise


class _Children:
    """Calls DataLoader's handler of SIGCHLD, which raises, only while a batch is awaited."""

    def __init__(self) -> None:
        self._handler: Any = None
        self._waits = 0

    def take_over(self) -> None:
        """Put this in the place of the handler that DataLoader has set."""
        if not hasattr(signal, "SIGCHLD"):  # Windows
            return
        if threading.current_thread() is not threading.main_thread():
            return
        handler = signal.getsignal(signal.SIGCHLD)
        if callable(handler) and handler != self._handle:
            self._handler = handler
            signal.signal(signal.SIGCHLD, self._handle)

    def _handle(self, number: int, frame: Any) -> None:
        if self._waits:
            self._handler(number, frame)

    @contextmanager
    def heard(self) -> Iterator[None]:
        """A context in which the end of a worker raises, even if it came before."""
        self._waits += 1
        try:
            if self._handler is not None:
                self._handler(signal.SIGCHLD, None)
            yield
        finally:
            self._waits -= 1


_CHILDREN = _Children()


def _what_failed(error: Exception, workers: Sequence[BaseProcess]) -> str | None:
    """What an error says of the data workers; ``None`` if it is not about them."""
    text = str(error)
    if isinstance(error, MemoryError):
        return "a data worker is out of memory"
    if text.startswith("Caught "):  # raised by what reads an image
        return None
    if "Too many open files" in text:
        return "the data workers have too many open files; ulimit -n allows more"
    told = "DataLoader worker (pid" in text or "Pin memory thread exited" in text
    return _how_it_ended(workers) if told or not isinstance(error, RuntimeError) else None


def _how_it_ended(workers: Sequence[BaseProcess]) -> str:
    code = None
    for _ in range(20):  # its connection may be closed before it has ended
        code = next(filter(None, [worker.exitcode for worker in workers]), None)
        if code is not None:
            break
        time.sleep(0.1)
    if code is None:
        return "a data worker has ended"
    if code == _FULL or code == -getattr(signal, "SIGBUS", 0):
        return f"{FOLDER} is too small for the images that data workers pass on"
    if code > 0:
        return f"a data worker has ended with status {code}"
    name = {number.value: number.name for number in signal.Signals}.get(-code, f"signal {-code}")
    reason = ", as happens when memory runs out" if name == "SIGKILL" else ""
    return f"a data worker was ended by {name}{reason}"
