"""Running train_net.py many times; finished runs are not repeated."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import torch

from onenet.checkpoints.changes import differences, flat
from onenet.cli import EMBEDDED, add_import_flag, choose_engine, positive
from onenet.data.dataset import CocoDetection
from onenet.data.sources import find_dataset
from onenet.errors import ConfigError, DatasetError, OneNetError
from onenet.evaluation.registry import choose_evaluator
from onenet.evaluation.report import score
from onenet.evaluation.results import RESULTS_FILE, read_results
from onenet.evaluation.truth import has_objects, read_truth
from onenet.files import strict_json, write_whole
from onenet.lightning.build import build_detector
from onenet.training.run_folder import CONFIG, RESULTS

TRAIN_NET = Path(__file__).parents[2] / "projects" / "OneNet" / "train_net.py"
RESULT = "result.json"
CONSOLE = "console.txt"


class RunError(OneNetError):
    """A run failed, or its folder holds another run."""


class Children:
    """Child programs that end together.

    They do not receive the terminal's Ctrl-C, but a signal from :meth:`end`, which waits for them,
    so that they can save.
    """

    def __init__(self) -> None:
        self._running: set[subprocess.Popen] = set()
        self._lock = threading.Lock()
        self._ended = False

    def call(
        self,
        command: Sequence[str],
        *,
        folder: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> int:
        """Run a program and return its exit code.

        Args:
            command: the program and its arguments.
            folder: the program's output is appended to ``console.txt`` in it; None: the program
                prints to the terminal.
            env: added to this process' environment.

        Raises:
            RunError: another program is still running in ``folder``.
            KeyboardInterrupt: after Ctrl-C or :meth:`end`.
        """
        with _console(folder) as console:
            with self._lock:
                if self._ended:
                    raise KeyboardInterrupt
                process = subprocess.Popen(
                    command,
                    stdout=console,
                    stderr=console,
                    env={**os.environ, **(env or {})},
                    start_new_session=True,
                )
                self._running.add(process)
            try:
                return process.wait()
            except KeyboardInterrupt:
                self.end()
                raise
            finally:
                with self._lock:
                    self._running.discard(process)

    def end(self) -> None:
        """Send SIGTERM to all running programs and wait; Ctrl-C kills them. No more can start."""
        with self._lock:
            self._ended = True
            running = list(self._running)
        try:
            _end(running)
            for process in running:
                process.wait()
        except KeyboardInterrupt:
            _end(running, at_once=True)
            raise


def _end(running: Sequence[subprocess.Popen], *, at_once: bool = False) -> None:
    """Send a signal to programs and their children, as a terminal does."""
    for process in running:
        with suppress(ProcessLookupError):
            if not hasattr(os, "killpg"):  # on Windows, where this ends the program at once
                process.terminate()
                continue
            # Not SIGINT, which background programs may ignore.
            os.killpg(process.pid, signal.SIGKILL if at_once else signal.SIGTERM)


@contextmanager
def _console(folder: Path | None) -> Iterator[IO[bytes] | None]:
    """Open the file that a run prints to, locked while the run or a child of it has it open."""
    if folder is None:
        yield None
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / CONSOLE).open("ab") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ModuleNotFoundError:  # on Windows, where nothing guards the folder
            pass
        except BlockingIOError:
            raise RunError(
                f"{folder}: a run is still working there; wait until it ends, or stop it"
            ) from None
        yield file


def add_training_flags(parser: argparse.ArgumentParser) -> None:
    """Add ``--dataset``, ``--output``, ``--import`` and ``--num-gpus``, for programs that train."""
    parser.add_argument(
        "--dataset",
        nargs=2,
        required=True,
        metavar=("TRAIN", "TEST"),
        help="training and test data: known names or ANNOTATIONS.json:FOLDER",
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for runs and tables")
    add_import_flag(parser)
    parser.add_argument(
        "--num-gpus",
        type=positive,
        default=1,
        metavar="N",
        help="processes per training (default: 1)",
    )


def dataset_opts(train: str, test: str) -> list[str]:
    """Config overrides for training on one data set and testing on another by COCO's AP.

    Raises:
        DatasetError: a data set is not found, or the test set cannot be read or has no objects.
    """
    find_dataset(train)
    source = find_dataset(test)
    classes = len(CocoDetection(source).class_names)
    if not has_objects(read_truth(source.json_file)):
        raise DatasetError(f"{source.json_file} has no objects, so there is nothing to compare by")
    return [
        *("DATASETS.TRAIN", repr((train,)), "DATASETS.TEST", repr((test,))),
        *("MODEL.OneNet.NUM_CLASSES", str(classes), "TEST.EVALUATOR", "coco"),
    ]


def engine_name(choice: str) -> str:
    """The engine that ``--engine`` selects: ``lightning`` or ``detectron2``."""
    return "lightning" if choose_engine(choice)[0] == EMBEDDED else "detectron2"


def config_loader(engine: str) -> Callable[..., Any]:
    """The ``load_cfg`` of an engine, given by its name on the command line."""
    return importlib.import_module(f"{choose_engine(engine)[0]}.config").load_cfg


def check_model(engine: str, cfg: Any) -> None:
    """Raise ``ConfigError`` unless an engine can build a config's model."""
    if engine == "lightning":
        with torch.device("meta"):  # allocates no memory
            build_detector(cfg, training=True)
        return
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    importlib.import_module("onenet.d2.trainer").Trainer.build_model(cfg)


def run_once(
    folder: Path,
    config: Path,
    opts: Sequence[str],
    *,
    flags: Sequence[str] = (),
    engine: str = "lightning",
    call: Callable[[list[str]], int] | None = None,
) -> dict[str, float]:
    """Run train_net.py, unless it has succeeded before, and return the metrics.

    A training that was interrupted or failed continues from its last checkpoint.

    Args:
        folder: the run's ``OUTPUT_DIR``; ``result.json`` is written into it at the end.
        config: config file.
        opts: ``KEY VALUE …``, with a single data set in ``DATASETS.TEST``.
        flags: flags of train_net.py, such as ``--eval-only``.
        engine: ``lightning`` or ``detectron2``.
        call: runs a command and returns its exit code; default: :meth:`Children.call`.

    Returns:
        Metrics on the data set in ``DATASETS.TEST``.

    Raises:
        RunError: the run failed, or ``folder`` holds a run with another config.
        ConfigError, DatasetError: the config or its data set is wrong.
    """
    opts = [*map(str, opts), "OUTPUT_DIR", str(folder)]
    load_cfg = config_loader(engine)
    cfg = load_cfg(config, opts)
    check_same_config(folder, cfg, load_cfg)
    result = folder / RESULT
    if not result.is_file():
        start = time.monotonic()
        command = [sys.executable, str(TRAIN_NET), "--engine", engine, *flags]
        command += [] if "--eval-only" in flags else ["--resume"]
        code = (call or Children().call)([*command, "--config-file", str(config), *opts])
        if code:
            log = folder / (CONSOLE if (folder / CONSOLE).is_file() else "log.txt")
            raise RunError(f"{config} ended with exit code {code}; see {log}")
        content = {"metrics": _metrics(cfg, folder), "seconds": time.monotonic() - start}
        write_whole(result, f"{strict_json(content, indent=1)}\n".encode())
    return finished_metrics(folder)


def finished_metrics(folder: Path) -> dict[str, float] | None:
    """The metrics that :func:`run_once` stored in a folder; ``None`` if the run is not finished."""
    result = folder / RESULT
    if not result.is_file():
        return None
    metrics = json.loads(result.read_text(encoding="utf-8"))["metrics"]
    return {name: math.nan if value is None else value for name, value in metrics.items()}


def check_same_config(folder: Path, cfg: Any, load_cfg: Callable[..., Any]) -> None:
    """Raise ``RunError`` if ``folder`` holds a run whose config has other values.

    Args:
        folder: of a training, or of an evaluation, whose config is beside its results.
        cfg: the config to compare with.
        load_cfg: the engine's function of this name.
    """
    places = (folder / CONFIG, folder / RESULTS / CONFIG)
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        return
    advice = "choose another output folder, or remove this one"
    try:
        stored = flat(load_cfg(file))
    except ConfigError as error:
        raise RunError(
            f"{folder} holds a run of another engine or version ({error}); {advice}"
        ) from error
    for key, (before, now) in differences(stored, flat(cfg)).items():
        raise RunError(
            f"{folder} holds another run: its {key} is {before!r}, not {now!r}; {advice}"
        )


def _metrics(cfg: Any, folder: Path) -> dict[str, float]:
    """Metrics of the detections that a run wrote last."""
    (name,) = cfg.DATASETS.TEST
    source = find_dataset(name)
    truth = read_truth(source.json_file)
    ids = ([entry["id"] for entry in truth[part]] for part in ("images", "categories"))
    results = read_results(folder / "inference" / RESULTS_FILE, source.json_file, *ids)
    evaluator = choose_evaluator(cfg)
    found = score(evaluator, truth, results)
    return {f"{evaluator.group}/{title}": value for title, value in found.items()}
