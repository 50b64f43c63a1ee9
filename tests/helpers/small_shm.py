"""Trainings and an evaluation while /dev/shm is full; prints what became of each.

Run with ``PREFIX python -m helpers.small_shm ENGINE CONFIG`` (:func:`own_shared_memory`).
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.project import ROOT

FILLER = Path("/dev/shm/filler")


def own_shared_memory(size: str) -> list[str] | None:
    """What to put before a command to give it a /dev/shm of its own; ``None``: not allowed here.

    Args:
        size: as mount takes it, such as "2m".
    """
    if shutil.which("unshare") is None or not FILLER.parent.is_dir():
        return None
    root = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    script = f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$@"'
    prefix = ["unshare", *root, "--mount", "sh", "-c", script, "sh"]
    tried = subprocess.run([*prefix, "true"], capture_output=True)
    return prefix if tried.returncode == 0 else None


PREFIX = own_shared_memory("1m")
needs_mounts = pytest.mark.skipif(PREFIX is None, reason="no mount namespaces here")
ADVICE = re.compile(
    r"\(DATALOADER\.NUM_WORKERS 1\)\. /dev/shm has [\d.,]+ MiB, [\d.,]+ of them free now; a "
    r"container gets more with docker run --shm-size 8g\. Fewer DATALOADER\.NUM_WORKERS need less"
)
QUICK = {"SOLVER__MAX_ITER": 8, "SOLVER__CHECKPOINT_PERIOD": 100, "DATALOADER__NUM_WORKERS": 1}


def outcomes(engine: str, config: Path) -> list[dict[str, Any]]:
    """What :func:`main` prints in a process with a small /dev/shm."""
    command = [*PREFIX, sys.executable, "-m", "helpers.small_shm", engine, config]
    path = os.pathsep.join([str(ROOT / "tests"), str(ROOT / "projects/OneNet")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def error_line(outcome: dict[str, Any]) -> str:
    """The only error that a program has printed."""
    text = outcome["out"] + outcome["err"]
    (line,) = (line for line in text.splitlines() if "error: " in line and line[0] != "[")
    assert "Traceback" not in text and line in outcome["err"]
    return line


def check_outcomes(engine: str, config: Path) -> int:
    """Check what a full /dev/shm does to a run; returns the iteration that it was saved after."""
    stopped, unstarted, resumed = outcomes(engine, config)
    assert [one["status"] for one in (stopped, unstarted, resumed)] == [1, 1, 0]
    line, at_start = map(error_line, (stopped, unstarted))
    assert line.startswith("error: /dev/shm is too small for the images that data workers pass on")
    assert ADVICE.search(line) and ADVICE.search(at_start)
    done = int(re.search(r"Training stopped after iteration (\d+); --resume goes on", line)[1])
    assert line.endswith(f"model_{done - 1:07d}.pth") and done >= 2
    return done


def fill() -> None:
    """Leave no room at all."""
    with contextlib.suppress(OSError), FILLER.open("wb", buffering=0) as file:
        while file.write(bytes(1 << 16)):
            pass


def outcome(train: Callable[..., Any], *words: Any) -> dict[str, Any]:
    """Exit status, and what it printed."""
    status = 0
    with (
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        try:
            train(*words)
        except SystemExit as stop:
            status = stop.code
    return {"status": status, "out": out.getvalue(), "err": err.getvalue()}


@contextlib.contextmanager
def full_from(trainer: Any, method: str, iteration: str) -> Iterator[None]:
    """Within this context, the third iteration of a trainer begins with a full /dev/shm."""
    step = getattr(trainer, method)

    def filling(self: Any, *batch: Any) -> Any:
        if getattr(self, iteration) == 2:
            fill()
        return step(self, *batch)

    setattr(trainer, method, filling)
    try:
        yield
    finally:
        setattr(trainer, method, step)


def main(engine: str, config: Path) -> None:
    if engine == "lightning":
        from helpers.runs import train
        from onenet.lightning.trainer import Trainer

        place = Trainer, "step", "iteration"
    else:
        from helpers.detectron2_runs import train_d2 as train
        from onenet.d2 import Trainer

        place = Trainer, "run_step", "iter"
    with full_from(*place):
        stopped = outcome(train, config)
    fill()  # also what the worker has left
    unstarted = outcome(train, config, "--eval-only")
    FILLER.unlink()
    resumed = outcome(train, config, "--resume")
    print(json.dumps([stopped, unstarted, resumed]))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
