"""Running trainings, several at a time, and printing their progress."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import timedelta
from functools import partial
from queue import SimpleQueue

import torch

from _shared.ablations.plan import Training
from _shared.training_runs import Children
from onenet.errors import OneNetError

Call = Callable[..., int]


def run_all(
    trainings: Sequence[Training],
    jobs: int,
    work: Callable[[Training, Call], None],
    finished: Callable[[Training, OneNetError | None, float], None],
    *,
    gpus: int,
    cuda: bool,
) -> None:
    """Run trainings, ``jobs`` at a time; a failure does not stop the others, Ctrl-C does.

    Args:
        trainings: those that are left.
        jobs: number of trainings at a time.
        work: runs a training; gets the training and a function like ``Children.call``.
        finished: called in this thread with a training, its error or None, and its seconds.
        gpus, cuda: see :func:`share`.
    """
    children, places = Children(), SimpleQueue()
    for place in range(jobs):
        places.put(place)
    progress = Progress(trainings, jobs)

    def run(training: Training) -> float:
        place, seconds = places.get(), None
        start = progress.start(training)
        try:
            work(training, partial(children.call, env=share(place, jobs, gpus=gpus, cuda=cuda)))
            seconds = time.monotonic() - start
            return seconds
        finally:
            progress.end(training, seconds)
            places.put(place)

    with ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(run, training): training for training in trainings}
        try:
            for future in as_completed(futures):
                error = future.exception()
                if error is not None and not isinstance(error, OneNetError | OSError):
                    raise error
                finished(futures[future], error, 0.0 if error else future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            children.end()
            raise


def share(place: int, jobs: int, *, gpus: int, cuda: bool) -> dict[str, str]:
    """Environment variables for a run that shares the machine with others.

    Args:
        place: number of the run among those at the same time, from 0 to ``jobs`` - 1.
        jobs: number of runs at a time.
        gpus: processes per training.
        cuda: whether they run on GPUs, which are assigned in turn; otherwise the runs divide the
            CPU cores.
    """
    if jobs == 1:
        return {}
    if cuda:
        count = torch.cuda.device_count()
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(i) for i in range(count)]
        chosen = [names[(place * gpus + i) % count] for i in range(gpus)]
        return {"CUDA_VISIBLE_DEVICES": ",".join(chosen)}
    threads = max(1, (os.cpu_count() or 1) // (jobs * gpus))
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}


def say(line: str) -> None:
    """Print a line in one piece, since several threads print."""
    print(f"{line}\n", end="", flush=True)


class Progress:
    """Prints which trainings run and how long the rest will take, estimated by iterations.

    Args:
        trainings: those that are left.
        jobs: number of trainings at a time.
    """

    def __init__(self, trainings: Sequence[Training], jobs: int) -> None:
        self.total, self.jobs = len(trainings), jobs
        self._left = {training.name: training.iterations for training in trainings}
        self._running: dict[str, float] = {}  # name -> start, s
        self._iterations, self._seconds = 0, 0.0
        self._lock = threading.Lock()

    def start(self, training: Training) -> float:
        """Note that a training starts; returns the time in s."""
        with self._lock:
            now = self._running[training.name] = time.monotonic()
            self._print()
        return now

    def end(self, training: Training, seconds: float | None) -> None:
        """Note that a training has ended after ``seconds``; None if it failed."""
        with self._lock:
            del self._running[training.name]
            del self._left[training.name]
            if seconds is not None:
                self._iterations += training.iterations
                self._seconds += seconds
            if self._running and len(self._running) == len(self._left):
                self._print()  # no later start will print

    def _print(self) -> None:
        line = f"{self.total - len(self._left)} of {self.total} ended; running: "
        line += "; ".join(self._running)
        if self._iterations:
            line += f"; about {timedelta(seconds=round(self.remaining()))} left"
        say(line)

    def remaining(self) -> float:
        """Seconds until all trainings have ended, at the pace of the finished ones."""
        now = time.monotonic()
        pace = self._seconds / self._iterations
        spent = sum(min(now - start, pace * self._left[n]) for n, start in self._running.items())
        return (pace * sum(self._left.values()) - spent) / self.jobs
