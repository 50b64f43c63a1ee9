"""Who may import whom; the core stands on its own."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.project import ROOT as PROJECT

ROOT = PROJECT / "projects" / "OneNet"
PACKAGE = ROOT / "onenet"
FILES = sorted(PACKAGE.rglob("*.py"))


def imported(source: str, package: str) -> set[str]:
    """Full names of all that ``source``, a module of ``package``, imports anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            parents = parts[: len(parts) - node.level + 1] if node.level else []
            origin = ".".join([*parents, *filter(None, [node.module])])
            names.update(f"{origin}.{alias.name}" for alias in node.names)
    return names


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def forbidden(part: str) -> list[str]:
    """Packages that the files of ``onenet.<part>`` may not import ("" is the core)."""
    return {
        "d2": ["lightning", "pytorch_lightning", "onenet.lightning"],
        "lightning": ["detectron2", "onenet.d2"],
    }.get(part, ["detectron2", "lightning", "pytorch_lightning", "onenet.lightning", "onenet.d2"])


def test_imports_are_read_in_full():
    source = (
        "from . import engine\n"
        "from .heads import base as b\n"
        "from ..d2.trainer import Trainer\n"
        "def late():\n    import lightning.pytorch as pl\n"
        "from onenet import d2\n"
    )
    assert imported(source, "onenet.tools") == {
        "onenet.tools.engine",
        "onenet.tools.heads.base",
        "onenet.d2.trainer.Trainer",
        "lightning.pytorch",
        "onenet.d2",
    }
    assert not within("lightningrod", "lightning")


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_file_imports_only_from_below(file: Path):
    folders = file.relative_to(PACKAGE).parts[:-1]
    names = imported(file.read_text(encoding="utf-8"), ".".join(["onenet", *folders]))
    layer = folders[0] if folders else ""
    wrong = [n for n in sorted(names) if any(within(n, top) for top in forbidden(layer))]
    assert not wrong, f"{file.relative_to(ROOT)} imports {', '.join(wrong)}"


def test_the_core_imports_without_detectron2_and_lightning():
    code = (
        "import sys\n"
        "for name in ('detectron2', 'lightning', 'pytorch_lightning'): sys.modules[name] = None\n"
        "from onenet import *\n"
        "engines = ('onenet.lightning', 'onenet.d2')\n"
        "print(*[name for name in sys.modules if name.startswith(engines)])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == ""
