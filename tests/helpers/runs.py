"""Small trainings for the tests: their config, and runs of the program."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from helpers.forks import Forked
from helpers.project import ROOT
from onenet.api import isolation
from onenet.checkpoints.changes import nested
from onenet.checkpoints.files import save_checkpoint
from onenet.cli import choose_engine, training_parser
from onenet.detector import OneNet
from onenet.lightning.build import build_detector
from onenet.lightning.config import load_cfg
from onenet.lightning.main import run
from onenet.training.replay import replay as replay_dump

TRAIN_NET = ROOT / "projects" / "OneNet" / "train_net.py"
# For tests that look at TensorBoard's files.
CURVES = {"LOGGERS": ["tensorboard"]}
# Of tools/make_shapes_dataset.py, by label.
CLASSES = ["circle", "ring", "square", "triangle", "star", "cross"]


def tiny_values(data: Path, output: Path) -> dict[str, Any]:
    """A config of ResNet-18 with a thin neck, for seconds on a CPU; dotted keys.

    Args:
        data: a folder that tools/make_shapes_dataset.py made.
        output: the run's folder.
    """
    splits = {s: f"{data}/annotations/instances_{s}.json:{data}/{s}" for s in ("train", "val")}
    return {
        "MODEL.DEVICE": "cpu",
        "MODEL.WEIGHTS": "",
        "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
        "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
        "MODEL.BACKBONE.FREEZE_AT": 0,
        "MODEL.RESNETS.DEPTH": 18,
        "MODEL.RESNETS.NORM": "BN",
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
        "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
        "MODEL.OneNet.NUM_CLASSES": 6,
        "MODEL.OneNet.DCN": False,
        "MODEL.OneNet.DECONV_CHANNEL": [512, 16, 16, 16],
        "INPUT.FORMAT": "RGB",
        "INPUT.MIN_SIZE_TRAIN": [48, 64],
        "INPUT.MAX_SIZE_TRAIN": 64,
        "INPUT.MIN_SIZE_TEST": 64,
        "INPUT.MAX_SIZE_TEST": 64,
        "INPUT.CROP.ENABLED": True,
        "INPUT.CROP.TYPE": "absolute_range",
        "INPUT.CROP.SIZE": [32, 56],
        "DATASETS.TRAIN": [splits["train"]],
        "DATASETS.TEST": [splits["val"]],
        "DATALOADER.NUM_WORKERS": 0,
        "SOLVER.IMS_PER_BATCH": 4,
        "SOLVER.OPTIMIZER": "SGD",
        "SOLVER.BASE_LR": 1e-3,
        "SOLVER.WARMUP_ITERS": 3,
        "SOLVER.STEPS": [5],
        "SOLVER.MAX_ITER": 6,
        "SOLVER.CHECKPOINT_PERIOD": 1000,
        "SEED": 11,
        "LOGGERS": [],  # drawing and compressing pictures takes a while
        "OUTPUT_DIR": str(output),
    }


def write_config(folder: Path, data: Path, **changes: Any) -> Path:
    """Write :func:`tiny_values` to ``folder/tiny.yaml``; the run's folder is ``folder/run``.

    Args:
        changes: dotted keys with ``__`` for the dots.
    """
    values = tiny_values(data, folder / "run")
    values.update({key.replace("__", "."): value for key, value in changes.items()})
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(nested(values)))
    return path


@torch.no_grad()
def spread(model: OneNet) -> OneNet:
    """The model with scores far enough from each other, and statistics as if trained."""
    model.head.cls_score.weight.normal_(std=0.2)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model


def trained(
    folder: Path, shapes: Path, extras: dict[str, Any] | None = None, **changes: Any
) -> tuple[Path, Path]:
    """A config and a checkpoint of it that finds a hundred boxes in every image.

    Args:
        extras: what else the checkpoint holds.
    """
    weights = folder / "model.pth"
    config = write_config(folder, shapes, MODEL__WEIGHTS=str(weights), **changes)
    torch.manual_seed(0)
    model = spread(build_detector(load_cfg(config)))
    save_checkpoint(weights, {"model": model.state_dict(), **(extras or {})})
    return config, weights


@contextmanager
def unchanged_process() -> Iterator[None]:
    """Undo what a run does to its process, which computes with one thread."""
    with isolation.unchanged_process():
        torch.set_num_threads(1)
        yield


def train(config: Path, *words: Any) -> dict[str, float] | None:
    """Run train_net.py's program in this process; ``words`` are flags, then overrides."""
    with unchanged_process():
        args = training_parser().parse_args(["--config-file", str(config), *map(str, words)])
        return run(args, "a test")


def refused(engine: Callable[..., Any], capsys: Any, *words: Any) -> str:
    """The line that a refused command line prints to stderr.

    Args:
        engine: the program, such as :func:`train`; called with ``words``.
    """
    with pytest.raises(SystemExit) as stop:
        engine(*words)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "Traceback" not in error
    (line,) = (line for line in error.splitlines() if line.startswith("error: "))
    return line


def start(
    config: Path, *words: Any, program: tuple[str, ...] = (), new: bool = False, **env: str
) -> Forked | subprocess.Popen:
    """Start train_net.py in a process of its own, its output piped.

    Args:
        program: what runs it, in place of Python alone.
        new: with all its processes started as a user does; else they are forked (:class:`Forked`).
    """
    command = [*program, str(TRAIN_NET), "--config-file", str(config), *map(str, words)]
    path = os.pathsep.join(filter(None, (str(ROOT / "projects/OneNet"), os.getenv("PYTHONPATH"))))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **env}
    if not new:
        return Forked(command, environment)
    return subprocess.Popen(
        [sys.executable, *command],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def end(process: Forked | subprocess.Popen) -> None:
    """Kill what :func:`start` started, with its children, as ``kill -9`` does."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def finish(process: Forked | subprocess.Popen, timeout: float = 300) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of what :func:`start` started."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        end(process)
        raise
    return process.returncode, out, err


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location="cpu", weights_only=True)


def training_of(path: Path) -> dict[str, Any]:
    """What a checkpoint holds, but for what names its run and the run's folder."""
    return {key: value for key, value in load(path).items() if key not in ("run", "config")}


def metrics(output: Path) -> list[dict[str, float]]:
    """The lines of a run's metrics.json; NaN for ``null``."""
    lines = (output / "metrics.json").read_text().splitlines()
    return [{k: math.nan if v is None else v for k, v in strict(line).items()} for line in lines]


def strict(text: str) -> Any:
    """The content of a JSON text that every reader takes: without NaN and infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def edit_json(data: Path, copy: Path, split: str, change: Any) -> Path:
    """A copy of a data set with a changed annotation file.

    Args:
        change: called with the content, which it changes in place.
    """
    shutil.copytree(data, copy)
    file = copy / "annotations" / f"instances_{split}.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    return copy


def assert_same(one: Any, other: Any) -> None:
    """Bit-equal tensors and equal everything else, through dicts and lists."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    else:
        assert one == other


def replay(path: str, opts: Sequence[str] = ()) -> bool:
    """Replay a dump as ``train_net.py --replay`` does."""
    return replay_dump(path, opts, choose_engine=choose_engine)
