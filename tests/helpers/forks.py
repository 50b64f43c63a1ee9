"""Programs in processes forked from one that has their modules loaded, which takes seconds."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent import futures
from functools import cache
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from typing import Any

from torch.multiprocessing import start_processes

from helpers.project import ROOT

_LOADED = ["helpers.runs", "torch.distributed.run", "torch.utils.tensorboard", "torchvision"]


@cache
def context() -> Any:
    """The start method of processes that are forked from a server; starts it."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(_LOADED)
    environment = dict(os.environ)
    paths = [str(ROOT / "tests"), str(ROOT / "projects" / "OneNet"), os.getenv("PYTHONPATH")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(environment)
    return server


class Forked:
    """A Python program in a session of its own, with the methods of ``Popen`` that tests use.

    Args:
        words: of a command line behind ``python``: a file, or ``-m`` and a module; then arguments.
        env: the environment.
    """

    def __init__(self, words: Sequence[str], env: dict[str, str]) -> None:
        self.args = words
        (out, out_end), (err, err_end) = os.pipe(), os.pipe()
        ends = [Connection(end, readable=False) for end in (out_end, err_end)]
        self.process = context().Process(target=_run, args=(words, env, *ends))
        self.process.start()
        for end in ends:
            end.close()
        readers = futures.ThreadPoolExecutor(2)
        self.texts = [readers.submit(_read, end) for end in (out, err)]
        readers.shutdown(wait=False)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.process.exitcode

    def communicate(self, timeout: float | None = None) -> list[str]:
        """Stdout and stderr, once the program and all that it started have closed them."""
        _, late = futures.wait(self.texts, timeout)
        if late:
            raise subprocess.TimeoutExpired(self.args, timeout)
        self.process.join()
        return [text.result() for text in self.texts]


def _read(end: int) -> str:
    with open(end, encoding="utf-8") as file:
        return file.read()


def _run(words: Sequence[str], env: dict[str, str], *ends: Connection) -> None:
    from onenet.lightning import launch

    os.setsid()
    for stream, end in enumerate(ends, start=1):
        os.dup2(end.fileno(), stream)
        end.close()
    # Not the server's, which may have been a file, with a position.
    lines = 1 if "PYTHONUNBUFFERED" in env else -1
    sys.stdout = open(1, "w", buffering=lines, encoding="utf-8", closefd=False)
    os.environ.clear()
    os.environ.update(env)
    launch.start_processes = _start_processes
    # Its own, which tells its stderr, and not the tests', of what a killed process leaves behind.
    tracker = resource_tracker._resource_tracker
    tracker._fd = tracker._pid = None
    is_module = words[0] == "-m"
    sys.argv = list(words[is_module:])
    (runpy.run_module if is_module else runpy.run_path)(sys.argv[0], run_name="__main__")


def _start_processes(work: Callable[..., Any], words: Sequence[Any], nprocs: int) -> Any:
    """torch's, of forked processes in place of new ones."""
    return start_processes(_work, (work, *words), nprocs, start_method="fork")


def _work(rank: int, work: Callable[..., Any], *words: Any) -> None:
    # As in a new process.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    work(rank, *words)
