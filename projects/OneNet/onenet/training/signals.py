"""Ctrl-C and the signals of schedulers: training stops after an iteration, the same on all."""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from onenet.errors import drop_stream

from .distributed import processes, rank

# Of a terminal that closes, and of Slurm before it ends a job. Windows has neither.
_MORE = [getattr(signal, name) for name in ("SIGHUP", "SIGUSR1") if hasattr(signal, name)]
SIGNALS = (signal.SIGINT, signal.SIGTERM, *_MORE)
_INTERRUPTED = "interrupted; --resume goes on from the last checkpoint"


class Stopped(KeyboardInterrupt):
    """A signal ends the program.

    Args:
        number: of the signal.
        done: what happened to the work.
    """

    def __init__(self, number: int, done: str = _INTERRUPTED) -> None:
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        super().__init__(f"{name}: {done}")
        self.number = number


def stopped_after(iteration: int, number: int, last: Path | None) -> Stopped:
    """What ends a training between two iterations.

    Args:
        iteration: how many are done.
        number: of the signal.
        last: the checkpoint that ``--resume`` continues from, if there is one.
    """
    return Stopped(number, how_it_stopped(iteration, last))


def how_it_stopped(iteration: int, last: Path | None) -> str:
    """The line of a training that ends between two iterations; see :func:`stopped_after`."""
    then = f"--resume goes on from {last}" if last else "there is no checkpoint to resume from"
    return f"stopped after iteration {iteration}; {then}"


def end_stopped(error: KeyboardInterrupt, log: Callable[[str], None] | None) -> NoReturn:
    """End the program with 128 and the signal's number as status, after a line on stderr.

    Args:
        log: gets the same line; ``None``: another process prints it.
    """
    if log is not None:
        line = str(error) or _INTERRUPTED
        log(line)
        print(line, file=sys.stderr, flush=True)
    raise SystemExit(128 + getattr(error, "number", signal.SIGINT)) from error


@contextmanager
def _handled_by(handle: Callable[[int, Any], None]) -> Iterator[None]:
    def handle_signal(number: int, frame: Any) -> None:
        if number == getattr(signal, "SIGHUP", None):
            _leave_terminal()
        handle(number, frame)

    before = {}
    # Only Python's main thread can set handlers.
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            # A job in the background may ignore Ctrl-C; nohup ignores SIGHUP.
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, handle_signal)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_at_once() -> AbstractContextManager[None]:
    """A context in which Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 raise :class:`Stopped`."""

    def handle(number: int, _: Any) -> None:
        raise Stopped(number)

    return _handled_by(handle)


def _leave_terminal() -> None:
    """Drop what is printed from now on if the terminal is closed, as printing would raise."""
    time.sleep(0.1)  # a pipe's reader may be about to end, too
    for stream in (1, 2):
        poll = select.poll()
        poll.register(stream, 0)
        if poll.poll(0):  # errors alone
            drop_stream(stream)


def hand_on() -> AbstractContextManager[None]:
    """A context for a process that waits for its children: passes signals on to them.

    Ctrl-C reaches them anyway.
    """

    def handle(number: int, _: Any) -> None:
        if number != signal.SIGINT:
            for child in multiprocessing.active_children():
                with suppress(ProcessLookupError):
                    os.kill(child.pid, number)

    return _handled_by(handle)


class StopRequests:
    """A context that notes the signals, so that the loop can finish its iteration.

    A second Ctrl-C raises :class:`Stopped` at once. If the loop fails, a noted signal is raised
    again: another process may have failed for the same reason, and sent it.
    """

    def __init__(self) -> None:
        self._noted = 0
        self._context = _handled_by(self._note)
        self._several = processes() > 1
        # With NCCL the host would wait for the device.
        own = self._several and dist.get_backend() != "gloo"
        self._group = dist.new_group(backend="gloo") if own else None

    def __enter__(self) -> StopRequests:
        self._context.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        self._context.__exit__(kind, *error)
        if self._noted and kind is not None and issubclass(kind, Exception):
            signal.raise_signal(self._noted)

    def _note(self, number: int, _: Any) -> None:
        if self._noted and number == signal.SIGINT:
            raise Stopped(number)
        self._noted = self._noted or number
        if number == signal.SIGINT and rank() == 0:
            # Not print(), which the signal may have interrupted.
            os.write(2, b"\nstopping after this iteration; Ctrl-C again stops at once\n")

    def agreed(self) -> int:
        """The signal that any process got, else 0; all processes call this in every iteration."""
        if not self._several:
            return self._noted
        noted = torch.tensor(self._noted)
        dist.all_reduce(noted, dist.ReduceOp.MAX, group=self._group)
        return int(noted)


def leave_signals_to_the_first(_: int = 0) -> None:
    """Make a process that loads data ignore signals, and end when its parent ends or says so.

    A signal to the whole group is for the parent alone. The parent may end in any way, ``kill -9``
    included. A ``worker_init_fn`` of ``DataLoader``.
    """
    for number in (signal.SIGINT, *_MORE):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_told, daemon=True).start()
    threading.Thread(target=_end_with_the_first, daemon=True).start()


def _end_when_told() -> None:
    first = multiprocessing.parent_process().pid
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != first:
        pass
    os._exit(128 + signal.SIGTERM)


def _end_with_the_first() -> None:
    # DataLoader's own check watches the fork server, if there is one, which does not end.
    multiprocessing.parent_process().join()
    os._exit(1)
