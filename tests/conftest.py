"""Helpers of the tests."""

from __future__ import annotations

import importlib.util
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
# A shell lets its jobs in the background ignore Ctrl-C, which tests send.
signal.signal(signal.SIGINT, signal.default_int_handler)


def load_script(path: str) -> ModuleType:
    """The module of a program that is not in a package, its path relative to the project.

    As when it is run, it can import its neighbours.
    """
    file = ROOT / path
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    sys.path.insert(0, str(file.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(file.parent))
    return module


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny data set of six classes: 12 training and 6 validation images."""
    folder = tmp_path_factory.mktemp("data") / "shapes"
    maker = load_script("tools/make_shapes_dataset.py")
    maker.make_dataset(folder, train=12, val=6, size=64, seed=3)
    return folder


@pytest.fixture(scope="module")
def tools() -> Iterator[None]:
    """Makes the programs in ``tools/`` and their parts importable, as when one is run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "tools"))
        yield
