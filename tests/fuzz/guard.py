"""One input under limits, and what came of many."""

from __future__ import annotations

import hashlib
import json
import re
import resource
import signal
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onenet.errors import OneNetError

from .targets import Target

SECONDS = 5.0  # of the processor for one input
MEMORY = 2**30  # bytes, likewise
_STOP = 4 * 2**30  # bytes that a process can ask for at all, to spare the machine
_PAGE = resource.getpagesize()


class Hang(BaseException):
    """Time is up; no ``Exception``, which readers of broken files catch."""


@dataclass
class Tally:
    """What came of the inputs of a target.

    Attributes:
        outcomes: how often inputs were accepted, or refused with a message.
        slowest: seconds of the processor for one input, whose hash begins with ``slowest_input``.
        growth: bytes, the most by which resident memory grew during one input.
        problems: by kind and place, how often.
    """

    runs: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    slowest_input: str = ""
    growth: int = 0
    problems: Counter[str] = field(default_factory=Counter)

    def add(self, other: Tally) -> None:
        """Count what another one counted, too."""
        self.runs += other.runs
        self.outcomes += other.outcomes
        self.problems += other.problems
        self.growth = max(self.growth, other.growth)
        if other.slowest > self.slowest:
            self.slowest, self.slowest_input = other.slowest, other.slowest_input

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(vars(self)), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Tally:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for name in ("outcomes", "problems"):
            content[name] = Counter(content[name])
        return cls(**content)


class Guard:
    """Runs a target's inputs.

    An input lies in ``current`` while it is read, where it stays if the process dies.

    Args:
        target: what reads.
        folder: for ``current`` and its like.
        findings: folder in which the first input of every problem is saved.
    """

    def __init__(self, target: Target, folder: Path, findings: Path) -> None:
        self.target, self.findings, self.tally = target, findings, Tally()
        folder.mkdir(parents=True, exist_ok=True)
        self.current = folder / f"current{target.suffix}"
        signal.signal(signal.SIGPROF, self._stop)

    def _stop(self, *_: Any) -> None:
        raise Hang

    def run(self, data: bytes) -> str | None:
        """Read one input; returns the problem that it makes, if any."""
        self.current.write_bytes(data)
        before, highest, start = _resident(), _peak(), time.process_time()
        problem = None
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            try:
                self.target.read(self.current)
                outcome = "accepted"
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
        except OneNetError as error:
            outcome = f"refused: {_kind(str(error).replace(str(self.current.parent), ''))}"
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            outcome = problem = f"{type(error).__name__} at {_place(error)}"
            told = traceback.format_exc()
        seconds = time.process_time() - start
        peak = _peak()
        growth = peak - before if peak > highest else 0  # or less than has been seen before
        if problem is None and growth > MEMORY:
            problem = told = f"memory: {outcome}"
        self._count(data, outcome, seconds, growth)
        if problem:
            self.tally.problems[problem] += 1
            save_finding(self.findings, self.target, data, problem, told)
        return problem

    def _count(self, data: bytes, outcome: str, seconds: float, growth: int) -> None:
        self.tally.runs += 1
        self.tally.outcomes[outcome] += 1
        self.tally.growth = max(self.tally.growth, growth)
        if seconds > self.tally.slowest:
            self.tally.slowest, self.tally.slowest_input = seconds, _digits(data)
            self.current.with_name("slowest").write_bytes(data)


def save_finding(folder: Path, target: Target, data: bytes, problem: str, told: str) -> None:
    """Keep the first input that makes a problem, and beside it what was told."""
    path = folder / f"{target.name}-{_digits(problem.encode())}{target.suffix}"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        path.with_name(path.name + ".txt").write_text(f"{problem}\n\n{told}", errors="replace")


def limit_memory() -> None:
    """Let this process have no more than so much beyond what it has."""
    reserved = int(Path("/proc/self/statm").read_text().split()[0]) * _PAGE
    resource.setrlimit(resource.RLIMIT_AS, (reserved + _STOP, resource.RLIM_INFINITY))


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _place(error: BaseException) -> str:
    """The innermost line of the project in an error's traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/onenet/" in frame.filename or "/tools/" in frame.filename]
    frame = (own or frames)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}"


def _kind(message: str) -> str:
    """The start of a message, without what it quotes and its numbers."""
    return re.sub(r"(['\"]).*?\1|[\d.]+", "_", message)[:200]


def _digits(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]
