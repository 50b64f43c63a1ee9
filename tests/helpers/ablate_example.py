"""A small ablation for the tests, and train_net.py played in their process."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from helpers.project import load_script
from helpers.runs import write_config
from onenet.cli import choose_engine, training_parser

script = load_script("tools/ablate.py")

SPEC = {
    "config": "tiny.yaml",
    "axes": {
        "class cost": {
            "off": {"MODEL.OneNet.CLASS_COST": 0.0},
            "on": {"MODEL.OneNet.CLASS_COST": 2.0},
        }
    },
    "plot": ["AP", "duplicates"],
}


def write_spec(folder: Path, **changes: Any) -> Path:
    """``SPEC`` with other values of its keys; ``None`` leaves one out."""
    values = {k: v for k, v in {**SPEC, **changes}.items() if v is not None}
    path = folder / "study.yaml"
    path.write_text(json.dumps(values))  # which is YAML
    return path


def command(shapes: Path, folder: Path, *flags: str, **changes: Any) -> list[str]:
    """The words of a call in ``folder`` that trains for an iteration."""
    write_config(folder, shapes, SOLVER__MAX_ITER=1, SOLVER__IMS_PER_BATCH=2)
    sets = [f"{shapes}/annotations/instances_{s}.json:{shapes}/{s}" for s in ("train", "val")]
    spec = write_spec(folder, **changes)
    output = ["--output", str(folder / "out"), "--engine", "lightning"]
    return [str(spec), "--dataset", *sets, *output, *flags]


class Played:
    """In place of ``Children.call``: runs train_net.py here, or only as if.

    Args:
        process: context of a run; ``None``: nothing runs, and nothing is detected.

    Attributes:
        folders: of the runs, in order.
        failing: runs whose folder has this in its path end badly.
    """

    def __init__(self, process: Any = None) -> None:
        self.folders: list[Path] = []
        self.failing: str | None = None
        self.process = process

    def __call__(self, words: list[str], *, folder: Path, env: dict[str, str]) -> int:
        self.folders.append(folder)
        if self.failing and self.failing in str(folder):
            return 1
        if self.process is None:
            (folder / "inference").mkdir(parents=True)
            (folder / "inference" / "coco_instances_results.json").write_text("[]")
            return 0
        args = training_parser().parse_args(words[2:])
        package, why = choose_engine(args.engine)
        with self.process():
            importlib.import_module(f"{package}.main").run(args, why)
        return 0
