"""What the tests of configs share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.project import ROOT
from onenet.errors import ConfigError
from onenet.lightning.config import load_cfg

CONFIGS = ROOT / "projects" / "OneNet" / "configs"
R50 = CONFIGS / "onenet.res50.nodcn.yaml"


def write(folder: Path, text: str, name: str = "c.yaml") -> Path:
    """A config file with ``text``; returns its path."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def refused(path: Path, *opts: str) -> str:
    """The message with which a config is refused."""
    with pytest.raises(ConfigError) as error:
        load_cfg(path, opts)
    return str(error.value)


def flat(node: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf."""
    for name, value in node.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


RECIPES, QUICK, BASELINES = (
    ROOT / "configs" / name for name in ("recipes", "quick_schedules", "baselines")
)
# Those in configs/ablations are specs of tools/ablate.py, see tools/test_ablate.py.
FOLDERS = (CONFIGS, RECIPES, QUICK, BASELINES)


SHIPPED = sorted(path for folder in FOLDERS for path in folder.glob("*.yaml"))
