"""Watch a long training from outside: its memory, open files and threads must not grow.

    python tools/dev/soak.py --output soak

trains a thin ResNet-18 on drawn shapes on the CPU, with two data workers, checkpoints, evaluations
and logging, and reads from /proc, hence on Linux only, what its processes hold. ``soak.json`` and
``soak.png`` in the output folder show it. The exit status is 1 where something grows after the
first iterations. ``KEY VALUE`` pairs change the config.
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

sys.path.insert(0, str(Path(__file__).parents[1]))  # tools/

from make_shapes_dataset import make_dataset

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
# What 1,000 iterations may add: less than a file or a thread for every checkpoint or evaluation.
LIMITS = {"memory": 1.0, "worker_memory": 1.0, "files": 0.1, "threads": 0.1}
UNITS = {"memory": " MiB", "worker_memory": " MiB", "files": "", "threads": ""}


class SoakError(OneNetError):
    """The training that is watched failed, or was too short."""

    exit_status = 1


@dataclass(frozen=True)
class Sample:
    """What a training's processes hold.

    Attributes:
        iteration: done, at least.
        memory: resident MiB of the training process.
        worker_memory: resident MiB of the data workers together; pages they share count twice.
        files: open file descriptors of all processes.
        threads: of all processes.
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
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder, new")
    parser.add_argument(
        "--iterations",
        type=positive,
        default=5000,
        metavar="N",
        help="in all (default: %(default)s)",
    )
    parser.add_argument(
        "--settle",
        type=natural,
        default=500,
        metavar="N",
        help="first iterations, in which anything may grow (default: %(default)s)",
    )
    parser.add_argument(
        "--every", type=positive, default=50, metavar="N", help="iterations (default: %(default)s)"
    )
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config values to change"
    )
    return parser


def take_sample(pid: int, iteration: int) -> Sample:
    """What a process and its children hold now.

    Raises:
        OSError: one of them has ended.
    """
    tasks = Path(f"/proc/{pid}/task").iterdir()
    children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    memory, *worker_memory = (_resident(process) for process in (pid, *children))
    files, threads = (
        sum(len(os.listdir(f"/proc/{process}/{kind}")) for process in (pid, *children))
        for kind in ("fd", "task")
    )
    return Sample(iteration, memory, sum(worker_memory), files, threads)


def _resident(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 2**20


def watch(process: subprocess.Popen, metrics: Path, every: int) -> Iterator[Sample]:
    """Samples of a training until it ends, about every so many iterations.

    They are taken right after a line of the log: not while it evaluates, which takes further
    processes for a moment.
    """
    due, seen = every, 0
    while process.poll() is None:
        time.sleep(0.02)
        iteration = _logged(metrics)
        if iteration > seen and iteration >= due and iteration % PERIOD:
            with suppress(OSError):
                yield take_sample(process.pid, iteration)
                due = iteration - iteration % every + every
        seen = iteration


def _logged(metrics: Path) -> int:
    """The last iteration whose losses are in ``metrics.json``."""
    if not metrics.exists():
        return 0
    lines = [line for line in metrics.read_text().split("\n")[:-1] if "total_loss" in line]
    return json.loads(lines[-1])["iteration"] if lines else 0


def growth(samples: Sequence[Sample], settle: int) -> dict[str, float]:
    """What 1,000 iterations add, by the median of the slopes between all pairs of samples.

    Args:
        settle: samples up to this iteration do not count.

    Raises:
        SoakError: fewer than ten samples after it.
    """
    late = [sample for sample in samples if sample.iteration > settle]
    if len(late) < 10:
        raise SoakError(f"{len(late)} samples after iteration {settle}; give --iterations more")
    iterations = [sample.iteration for sample in late]
    return {
        name: 1000 * float(theilslopes([getattr(s, name) for s in late], iterations).slope)
        for name in LIMITS
    }


def draw(samples: Sequence[Sample], settle: int) -> Figure:
    """Memory above, files and threads below."""
    figure = Figure(figsize=(8, 5), dpi=90, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    iterations = [sample.iteration for sample in samples]
    for axes, name, label in (
        (above, "memory", "training process"),
        (above, "worker_memory", "data workers"),
        (below, "files", "open files"),
        (below, "threads", "threads"),
    ):
        axes.plot(iterations, [getattr(s, name) for s in samples], ".-", ms=3, lw=1, label=label)
    for axes in (above, below):
        axes.axvspan(0, settle, color="#eeeeee", zorder=0)
        axes.set_ylim(0, 1.3 * axes.get_ylim()[1])
        axes.margins(x=0)
        axes.legend(loc="upper right", ncols=2)
    above.set_ylabel("resident memory (MiB)")
    below.set(ylabel="number", xlabel="iteration")
    below.yaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def train(folder: Path, iterations: int, every: int, opts: Sequence[str]) -> Iterator[Sample]:
    """Samples of a training whose folder is ``run``.

    Raises:
        SoakError: it failed.
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
    """Returns the exit status."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    folder = args.output.resolve()
    folder.mkdir(parents=True)
    samples: list[Sample] = []
    try:
        samples.extend(train(folder, args.iterations, args.every, args.opts))
    finally:  # for what it is worth, where training fails
        draw(samples, args.settle).savefig(folder / "soak.png")
        content = json.dumps([asdict(sample) for sample in samples], indent=1)
        (folder / "soak.json").write_text(content + "\n")
    found = growth(samples, args.settle)
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
