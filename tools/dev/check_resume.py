"""Kill trainings at random moments, resume them, and compare them with an uninterrupted one.

    python tools/dev/check_resume.py --runs 50

Kills every training of the embedded engine twice, as ``kill -9`` does: once at any moment and once
while it saves. After each kill, every checkpoint in its folder must be readable. At the end, its
weights and the optimiser's state must equal those of the uninterrupted training bit for bit. The
model is a thin ResNet-18 on drawn shapes, on the CPU; ``KEY VALUE`` pairs change the config.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from shutil import rmtree
from typing import Any

import torch
from torch import Tensor

from onenet.checkpoints.files import read_checkpoint
from onenet.checkpoints.series import find_checkpoints
from onenet.cli import positive, run_program, training_parser
from onenet.errors import CheckpointError, OneNetError

sys.path.insert(0, str(Path(__file__).parents[1]))  # tools/

from _shared.shapes_dataset import make_dataset

CONFIG = Path(__file__).parents[2] / "configs" / "quick_schedules" / "onenet.res18.shapes.yaml"
SMALL = {
    "MODEL.OneNet.DECONV_CHANNEL": "[512, 16, 16, 16]",
    "INPUT.MIN_SIZE_TRAIN": "[64]",
    "INPUT.MAX_SIZE_TRAIN": "64",
    "DATASETS.TEST": "()",
    "SOLVER.OPTIMIZER": "SGD",
    "SOLVER.IMS_PER_BATCH": "2",
    "SOLVER.WARMUP_ITERS": "3",
    "SOLVER.MAX_ITER": "24",
    "SOLVER.CHECKPOINT_PERIOD": "3",
}


class ResumeError(OneNetError):
    """A resumed training failed, or its results differ."""

    exit_status = 1


@dataclass
class Killed:
    """The kills so far.

    Attributes:
        moments: when the current training was killed, in words.
        times: number of kills of all trainings.
        saving: number of kills that left a half-written file behind.
    """

    moments: list[str] = field(default_factory=list)
    times: int = 0
    saving: int = 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Kill trainings at random moments, resume them, and compare their weights with "
        "those of an uninterrupted one."
    )
    parser.add_argument(
        "--runs",
        type=positive,
        default=50,
        metavar="N",
        help="number of trainings to kill (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the moments (default: %(default)s)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="folder for the runs, which keeps those that fail (default: a temporary folder)",
    )
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config values to change"
    )
    return parser


class Trainings:
    """Trainings in separate processes, forked from one that has loaded all modules.

    Args:
        folder: where to put the data set and the runs' folders.
        opts: ``KEY VALUE …``.
    """

    def __init__(self, folder: Path, opts: Sequence[str]) -> None:
        self.folder = folder
        data = folder / "shapes"
        make_dataset(data, train=16, val=1, size=64, seed=0)
        train = f'["{data}/annotations/instances_train.json:{data}/train"]'
        small = {**SMALL, "DATASETS.TRAIN": train}
        self.opts = [*(word for pair in small.items() for word in pair), *opts]
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["onenet.lightning.main", "_shared.shapes_dataset"])

    def start(self, name: str) -> BaseProcess:
        """Start or resume the training in the folder ``name``."""
        run = str(self.folder / name)
        words = ["--resume", "--config-file", str(CONFIG), *self.opts, "OUTPUT_DIR", run]
        process = self.context.Process(target=train, args=(words, f"{run}.txt"))
        process.start()
        return process

    def finish(self, name: str) -> list[dict[str, Any]]:
        """Run a training to its end; returns its last checkpoint and ``model_final.pth``.

        Raises:
            ResumeError: the training failed.
        """
        process = self.start(name)
        process.join()
        if process.exitcode:
            raise ResumeError(f"exit code {process.exitcode}, see {self.folder / name}.txt")
        run = self.folder / name
        last = find_checkpoints(run)[0]
        return [training_of(path) for path in (last, run / "model_final.pth")]

    def kill(self, name: str, *, seconds: float, saves: int, killed: Killed) -> None:
        """Start or resume a training, and kill it.

        Args:
            name: folder of the training.
            seconds: time of the kill after the start, or after the beginning of a save.
            saves: number of that save; 0: count from the start.
            killed: updated with this kill.

        Raises:
            CheckpointError: a checkpoint in the folder cannot be read.
        """
        run = self.folder / name
        for left in run.glob(".*.partial"):  # from the kill before; the training removes it later
            left.unlink()
        process = self.start(name)
        saving = False
        while saves and process.is_alive():
            before, saving = saving, any(run.glob(".model_*.partial"))
            saves -= saving and not before
            time.sleep(0.001)
        process.join(seconds)
        if not process.is_alive():
            killed.moments.append("too late")
            return
        process.kill()
        process.join()
        torn = any(run.glob(".*.partial"))
        killed.times += 1
        killed.saving += torn
        checkpoints = find_checkpoints(run)
        last = checkpoints[0].name if checkpoints else "no checkpoint"
        killed.moments.append(f"after {last}" + ", while saving" * torn)
        for path in run.glob("*.pth"):
            read_checkpoint(path, verify=True)


def train(words: Sequence[str], log: str) -> None:
    """Train in this process, and print to the file ``log``."""
    from onenet.lightning.main import run

    with open(log, "a", encoding="utf-8") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    run(training_parser().parse_args(words), "tools/dev/check_resume.py")


def training_of(path: Path) -> dict[str, Any]:
    """What a checkpoint holds of its training, without what names the run and its folder."""
    content = read_checkpoint(path, verify=True)
    return {key: value for key, value in content.items() if key not in ("run", "config")}


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal, tensors bit for bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        alike = one.dtype == other.dtype and one.shape == other.shape
        return alike and one.numpy().tobytes() == other.numpy().tobytes()
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def check(folder: Path, runs: int, seed: int, opts: Sequence[str]) -> bool:
    """Kill, resume and compare trainings; prints a line for each. Returns whether all are equal."""
    trainings, rng, killed = Trainings(folder, opts), random.Random(seed), Killed()
    trainings.finish("first")  # loads the modules
    start = time.monotonic()
    expected = trainings.finish("uninterrupted")
    seconds = time.monotonic() - start
    saves = len(list((folder / "uninterrupted").glob("model_*.pth")))
    good = 0
    for number in range(1, runs + 1):
        name = f"run{number:03d}"
        killed.moments.clear()
        try:
            for in_a_save in rng.sample([True, False], 2):
                left = saves - len(find_checkpoints(folder / name))
                if in_a_save:
                    moment = {"seconds": rng.uniform(0, 0.2), "saves": rng.randint(1, left)}
                else:
                    moment = {"seconds": rng.uniform(0, seconds * left / saves), "saves": 0}
                trainings.kill(name, **moment, killed=killed)
            if not same(trainings.finish(name), expected):
                raise ResumeError("the results differ from those of the uninterrupted training")
            rmtree(folder / name)
            good += 1
            result = "equal"
        except (CheckpointError, ResumeError) as error:
            result = f"WRONG: {error}"
        print(f"{name}: killed {'; '.join(killed.moments)}: {result}", flush=True)
    print(
        f"{good} of {runs} trainings ended bit-equal to the uninterrupted one; killed "
        f"{killed.times} times, {killed.saving} of them while saving"
    )
    return good == runs


def run(args: argparse.Namespace) -> int:
    """Run the check and return the exit status."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    if args.output is not None:
        args.output.mkdir(parents=True, exist_ok=True)
        if any(args.output.iterdir()):
            # It removes the runs that it has checked.
            raise OneNetError(f"--output {args.output} must be a new or an empty folder")
        return 0 if check(args.output.resolve(), args.runs, args.seed, args.opts) else 1
    with tempfile.TemporaryDirectory() as folder:
        return 0 if check(Path(folder), args.runs, args.seed, args.opts) else 1


def main(argv: Sequence[str] | None = None) -> None:
    sys.exit(run_program(build_parser(), run, argv))


if __name__ == "__main__":
    main()
