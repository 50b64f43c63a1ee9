"""Runs of train_net.py for programs that need many: what is done is not done again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from onenet.datasets import find_dataset
from onenet.engine.config import load_cfg
from onenet.engine.datasets import CocoDetection
from onenet.engine.evaluation import score
from onenet.errors import OneNetError
from onenet.yaml_files import ConfigError

TRAIN_NET = Path(__file__).parents[1] / "projects" / "OneNet" / "train_net.py"
RESULT = "result.json"


class RunError(OneNetError):
    """A run that failed, or a folder that holds another one."""


def run_once(
    folder: Path, config: Path, opts: Sequence[str], *, flags: Sequence[str] = ()
) -> dict[str, float]:
    """Metrics of a run of the embedded engine on the data set in ``DATASETS.TEST``.

    A run that ended well is not repeated; a training that did not goes on from its last checkpoint.

    Args:
        folder: the run's ``OUTPUT_DIR``; gets ``result.json`` at the end.
        opts: ``KEY VALUE …``, with a single data set in ``DATASETS.TEST``.
        flags: of train_net.py, such as ``--eval-only``.

    Raises:
        RunError: it failed, or ``folder`` holds a run with another config.
        ConfigError, DatasetError: the config or its data set is at fault.
    """
    opts = [*map(str, opts), "OUTPUT_DIR", str(folder)]
    cfg = load_cfg(config, opts)
    check_same_config(folder, cfg)
    result = folder / RESULT
    if not result.is_file():
        start = time.monotonic()
        command = [sys.executable, str(TRAIN_NET), "--engine", "lightning", *flags]
        command += [] if "--eval-only" in flags else ["--resume"]
        code = subprocess.run([*command, "--config-file", str(config), *opts]).returncode
        if code:
            raise RunError(f"{config} ended with exit code {code}; see {folder / 'log.txt'}")
        content = {"metrics": _metrics(cfg, folder), "seconds": time.monotonic() - start}
        partial = result.with_suffix(".partial")
        partial.write_text(json.dumps(content, indent=1) + "\n")
        os.replace(partial, result)
    return json.loads(result.read_text())["metrics"]


def check_same_config(folder: Path, cfg: Any) -> None:
    """Raise ``RunError`` where ``folder`` holds a run whose config has other values."""
    file = folder / "config.yaml"
    if not file.is_file():
        return
    advice = "give another output folder, or remove this one"
    try:
        stored = dict(flat(load_cfg(file)))
    except ConfigError as error:
        raise RunError(f"{folder} holds a run of another version ({error}); {advice}") from error
    for key, value in flat(cfg):
        # inf and NaN are not equal to what YAML makes of them in lists.
        if repr(stored[key]) != repr(value):
            raise RunError(
                f"{folder} holds another run: its {key} is {stored[key]!r}, not {value!r}; {advice}"
            )


def flat(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf of a config."""
    for name, value in node.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _metrics(cfg: Any, folder: Path) -> dict[str, float]:
    """Of the detections that a run has written last."""
    (name,) = cfg.DATASETS.TEST
    results = json.loads((folder / "inference" / "coco_instances_results.json").read_text())
    return score(cfg, CocoDetection(find_dataset(name)), results)[0]
