"""Watch a long training from outside: its memory, open files and threads must not grow.

    python tools/dev/soak.py --output soak

trains a thin ResNet-18 on drawn shapes on the CPU, with two data workers, checkpoints, evaluations
and logging. Meanwhile it reads from /proc, hence on Linux only, what the training's processes hold,
and writes that to ``soak.json`` and ``soak.png`` in the output folder. The exit status is 1 if
something grows after the first iterations. ``KEY VALUE`` pairs change the config.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.stats import theilslopes

from onenet.cli import natural, positive, run_program
from onenet.errors import OneNetError
from onenet.files import strict_json

sys.path.insert(0, str(Path(__file__).parents[1]))  # tools/

from _shared.shapes_dataset import make_dataset

ROOT = Path(__file__).parents[2]
TRAIN_NET = ROOT / "projects" / "OneNet" / "train_net.py"
CONFIG = ROOT / "configs" / "quick_schedules" / "onenet.res18.shapes.yaml"
PERIOD = 250  # iterations between two checkpoints, and between two evaluations
SMALL = {
    "MODEL.OneNet.DECONV_CHANNEL": "[512, 16, 16, 16]",
    "INPUT.MIN_SIZE_TRAIN": "[64]",
    "INPUT.MAX_SIZE_TRAIN": "64",
    "INPUT.MIN_SIZE_TEST": "64",
    "INPUT.MAX_SIZE_TEST": "64",
    "SOLVER.IMS_PER_BATCH": "2",
    "SOLVER.CHECKPOINT_PERIOD": f"{PERIOD}",
    "SOLVER.CHECKPOINT_KEEP": "2",
    "TEST.EVAL_PERIOD": f"{PERIOD}",
    "DATALOADER.NUM_WORKERS": "2",
}
# Allowed growth in 1,000 iterations: less than one file or thread per checkpoint or evaluation.
LIMITS = {"memory": 1.0, "worker_memory": 1.0, "files": 0.1, "threads": 0.1}
UNITS = {"memory": " MiB", "worker_memory": " MiB", "files": "", "threads": ""}


class SoakError(OneNetError):
    """The training failed or was too short."""

    exit_status = 1


@dataclass(frozen=True)
class Reading:
    """What a training's processes hold at one moment.

    Attributes:
        iteration: number of finished iterations, at least.
        memory: resident MiB of the training process.
        worker_memory: resident MiB of all data workers; shared pages count once per worker.
        files: number of open file descriptors of all processes.
        threads: number of threads of all processes.
    """

    iteration: int
    memory: float
    worker_memory: float
    files: int
    threads: int


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Watch the memory, open files and threads of a long training of a tiny model."
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="folder, which must not exist yet"
    )
    parser.add_argument(
        "--iterations",
        type=positive,
        default=5000,
        metavar="N",
        help="length of the training (default: %(default)s)",
    )
    parser.add_argument(
        "--settle",
        type=natural,
        default=500,
        metavar="N",
        help="number of first iterations, during which growth is allowed (default: %(default)s)",
    )
    parser.add_argument(
        "--every",
        type=positive,
        default=50,
        metavar="N",
        help="iterations between two readings (default: %(default)s)",
    )
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config values to change"
    )
    return parser


def take_reading(pid: int, iteration: int) -> Reading:
    """Read what a process and its children hold now.

    Raises:
        OSError: one of the processes has ended.
    """
    tasks = Path(f"/proc/{pid}/task").iterdir()
    children = [
        int(child)
        for task in tasks
        for child in (task / "children").read_text(encoding="utf-8").split()
    ]
    memory, *worker_memory = (_resident(process) for process in (pid, *children))
    files, threads = (
        sum(len(os.listdir(f"/proc/{process}/{kind}")) for process in (pid, *children))
        for kind in ("fd", "task")
    )
    return Reading(iteration, memory, sum(worker_memory), files, threads)


def _resident(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 2**20


def watch(process: subprocess.Popen, metrics: Path, every: int) -> Iterator[Reading]:
    """Yield readings of a training until it ends, about every ``every`` iterations.

    They come right after a line of the log, not during evaluation, which starts further processes.
    """
    due, seen = every, 0
    while process.poll() is None:
        time.sleep(0.02)
        iteration = _logged(metrics)
        if iteration > seen and iteration >= due and iteration % PERIOD:
            with suppress(OSError):
                yield take_reading(process.pid, iteration)
                due = iteration - iteration % every + every
        seen = iteration


def _logged(metrics: Path) -> int:
    """The last iteration whose losses are in ``metrics.json``."""
    if not metrics.exists():
        return 0
    lines = [
        line
        for line in metrics.read_text(encoding="utf-8").split("\n")[:-1]
        if "total_loss" in line
    ]
    return json.loads(lines[-1])["iteration"] if lines else 0


def growth(readings: Sequence[Reading], settle: int) -> dict[str, float]:
    """Growth in 1,000 iterations, by the median of the slopes between all pairs of readings.

    Args:
        readings: of the whole training.
        settle: readings up to this iteration do not count.

    Raises:
        SoakError: fewer than ten readings count.
    """
    late = [reading for reading in readings if reading.iteration > settle]
    if len(late) < 10:
        raise SoakError(
            f"only {len(late)} readings after iteration {settle}, expected 10: increase "
            "--iterations or decrease --every"
        )
    iterations = [reading.iteration for reading in late]
    return {
        name: 1000 * float(theilslopes([getattr(r, name) for r in late], iterations).slope)
        for name in LIMITS
    }


def draw(readings: Sequence[Reading], settle: int) -> Figure:
    """Plot memory above, files and threads below."""
    figure = Figure(figsize=(8, 5), dpi=90, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    iterations = [reading.iteration for reading in readings]
    for axes, name, label in (
        (above, "memory", "training process"),
        (above, "worker_memory", "data workers"),
        (below, "files", "open files"),
        (below, "threads", "threads"),
    ):
        axes.plot(iterations, [getattr(r, name) for r in readings], ".-", ms=3, lw=1, label=label)
    for axes in (above, below):
        axes.axvspan(0, settle, color="#eeeeee", zorder=0)
        axes.set_ylim(0, 1.3 * axes.get_ylim()[1])
        axes.margins(x=0)
        axes.legend(loc="upper right", ncols=2)
    above.set_ylabel("resident memory (MiB)")
    below.set(ylabel="number", xlabel="iteration")
    below.yaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def train(folder: Path, iterations: int, every: int, opts: Sequence[str]) -> Iterator[Reading]:
    """Train in the subfolder ``run`` and yield readings.

    Raises:
        SoakError: the training failed.
    """
    data, run = folder / "shapes", folder / "run"
    make_dataset(data, train=16, val=4, size=64, seed=0)
    sets = {
        f"DATASETS.{key}": f'["{data}/annotations/instances_{split}.json:{data}/{split}"]'
        for key, split in (("TRAIN", "train"), ("TEST", "val"))
    }
    values = {**SMALL, **sets, "SOLVER.MAX_ITER": f"{iterations}", "OUTPUT_DIR": f"{run}"}
    command = [sys.executable, str(TRAIN_NET), "--engine", "lightning", "--config-file", CONFIG]
    command += [word for pair in values.items() for word in pair] + [*opts]
    log = folder / "console.txt"
    with log.open("wb") as console:
        process = subprocess.Popen(command, stdout=console, stderr=console)
    try:
        yield from watch(process, run / "metrics.json", every)
    finally:
        process.terminate()
        process.wait()
    if process.returncode:
        raise SoakError(f"training ended with exit code {process.returncode}, see {log}")


def run(args: argparse.Namespace) -> int:
    """Watch a training and return the exit status."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    folder = args.output.resolve()
    folder.mkdir(parents=True)
    readings: list[Reading] = []
    try:
        readings.extend(train(folder, args.iterations, args.every, args.opts))
    finally:  # also if the training fails
        draw(readings, args.settle).savefig(folder / "soak.png")
        content = strict_json([asdict(reading) for reading in readings], indent=1)
        (folder / "soak.json").write_text(content + "\n", encoding="utf-8")
    found = growth(readings, args.settle)
    for name, value in found.items():
        print(
            f"{name.replace('_', ' ')}: {value:+.3f}{UNITS[name]} in 1,000 iterations (limit "
            f"{LIMITS[name]:g}): {'GROWS' if value > LIMITS[name] else 'flat'}"
        )
    return int(any(value > LIMITS[name] for name, value in found.items()))


def main(argv: Sequence[str] | None = None) -> None:
    sys.exit(run_program(build_parser(), run, argv))


if __name__ == "__main__":
    main()
