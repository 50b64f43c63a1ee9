"""The arrows of the house: which folder may import which, and which packages it may need."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.project import ROOT

PACKAGE = ROOT / "projects" / "OneNet" / "onenet"
# onenet/__init__.py is left out: it imports every public name, on first use.
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")

# Folders of onenet, and modules beside them, with all that their files may import of onenet.
ARROWS = {
    "errors": "",
    "structures": "",
    "files": "errors",
    # The method.
    "ops": "structures",
    "assignment": "errors ops structures",
    "heads": "ops structures",
    "detector": "assignment data heads inference ops structures",
    # Around it.
    "backbones": "errors ops",
    "data": "errors files structures",
    "evaluation": "data errors files structures",
    "checkpoints": "backbones data errors files",
    "inference": "checkpoints data errors heads ops structures",
    "visualization": "assignment data errors evaluation files structures",
    "config": "assignment backbones checkpoints detector errors evaluation heads inference",
    "baselines": "assignment backbones checkpoints config data detector errors heads inference ops "
    "structures",
    "deploy": "data detector errors evaluation inference",
    "training": "assignment checkpoints data errors files inference ops structures",
    # The engines, thin, and the command lines that choose one.
    "d2": "assignment backbones baselines checkpoints config data detector errors evaluation files "
    "heads inference ops structures training visualization",
    "lightning": "backbones baselines checkpoints config data detector errors evaluation files "
    "inference ops structures training visualization",
    "cli": "config d2 errors lightning",
    # What users call.
    "api": "assignment baselines checkpoints cli config data deploy detector errors evaluation "
    "files inference lightning structures training visualization",
}
# Packages that only one folder may import.
ENGINES = {"detectron2": "d2", "lightning": "lightning", "pytorch_lightning": "lightning"}
# The method imports these packages alone, and its files below one more.
METHOD = ("structures", "detector", "ops", "assignment", "heads")
METHOD_PACKAGES = {"torch", "torchvision"}
MORE = {
    "assignment/matchers.py": {"scipy"},
    "assignment/registry.py": {"fvcore"},
    "heads/registry.py": {"fvcore"},
    # Imported on CUDA alone.
    "ops/kernels/criterion.py": {"triton"},
    "ops/kernels/formulas.py": {"triton"},
    "ops/kernels/gradients.py": {"triton"},
}


def imported(source: str, package: str) -> set[str]:
    """Full names of all that ``source``, a module of ``package``, imports anywhere in it.

    Whole strings such as "onenet.d2" count: ``import_module`` is called with them.
    """
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            parents = parts[: len(parts) - node.level + 1] if node.level else []
            origin = ".".join([*parents, *filter(None, [node.module])])
            names.update(f"{origin}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            parts = node.value.split(".")
            words = len(parts) > 1 and parts[0] == "onenet" and all(p.isidentifier() for p in parts)
            if words and node.value != "onenet.json":  # a file's name
                names.add(node.value)
    return names


def place(file: Path) -> str:
    """The folder of a file, or its own name beside the folders."""
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def imports_of(file: Path) -> set[str]:
    folders = file.relative_to(PACKAGE).parts[:-1]
    return imported(file.read_text(encoding="utf-8"), ".".join(["onenet", *folders]))


def within_onenet(names: set[str]) -> set[str]:
    """The places in onenet that full names belong to; public names count as what they are."""
    return {name.split(".")[1] for name in names if name.startswith("onenet.")}


def circle(arrows: dict[str, str]) -> list[str] | None:
    """Places that import each other in a circle, or ``None``."""

    def walk(path: list[str]) -> Iterator[list[str]]:
        for place in arrows[path[-1]].split():
            if place in path:
                yield [*path[path.index(place) :], place]
            else:
                yield from walk([*path, place])

    return next((found for start in arrows for found in walk([start])), None)


def test_imports_are_read_in_full():
    source = (
        "from . import lightning\n"
        "from .heads import base as b\n"
        "from ..d2.trainer import Trainer\n"
        "def late():\n    import lightning.pytorch as pl\n"
        "from onenet import d2\n"
        "import_module('onenet.d2.trainer')\n"
        "print('onenet.d2 is a package')\n"
    )
    assert imported(source, "onenet.tools") == {
        "onenet.tools.lightning",
        "onenet.tools.heads.base",
        "onenet.d2.trainer.Trainer",
        "lightning.pytorch",
        "onenet.d2",
        "onenet.d2.trainer",
    }


def test_the_table_has_no_circle():
    assert circle({"a": "b", "b": "c", "c": "b"}) == ["b", "c", "b"]
    assert circle(ARROWS) is None


def test_the_table_names_every_folder_and_every_arrow_in_use():
    used: dict[str, set[str]] = {place(file): set() for file in FILES}
    for file in FILES:
        used[place(file)] |= within_onenet(imports_of(file)) - {place(file)}
    assert {name: " ".join(sorted(places)) for name, places in used.items()} == ARROWS


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_file_imports_only_what_its_folder_may(file: Path):
    here, names = place(file), imports_of(file)
    wrong = within_onenet(names) - {here, *ARROWS[here].split()}
    assert not wrong, f"{here} may not import {', '.join(sorted(wrong))}"
    tops = {name.split(".")[0] for name in names} - {"onenet"}
    strangers = [name for name in tops if ENGINES.get(name, here) != here]
    assert not strangers, f"only {ENGINES[strangers[0]]} may import {strangers[0]}"
    if here in METHOD:
        allowed = METHOD_PACKAGES | MORE.get(file.relative_to(PACKAGE).as_posix(), set())
        assert tops - set(sys.stdlib_module_names) <= allowed


def test_packages_import_nothing_on_their_own():
    for file in PACKAGE.glob("*/__init__.py"):
        # Detectron2's users import onenet.d2 to register OneNet.
        assert file.parent.name == "d2" or not imports_of(file), file


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_core_imports_without_detectron2_and_lightning():
    code = (
        "import sys\n"
        "for name in ('detectron2', 'lightning', 'pytorch_lightning'): sys.modules[name] = None\n"
        "from onenet import *\n"
        "engines = ('onenet.lightning', 'onenet.d2')\n"
        "print(*[name for name in sys.modules if name.startswith(engines)])"
    )
    assert run(code) == ""


def test_the_runtime_imports_without_torch():
    code = (
        "import sys\n"
        "for name in ('torch', 'torchvision', 'lightning'): sys.modules[name] = None\n"
        "from onenet import OneNetError, OnnxPredictor, read_image\n"
        "print(OnnxPredictor.__name__, read_image.__name__)"
    )
    assert run(code) == "OnnxPredictor read_image"
