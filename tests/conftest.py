"""Helpers of the tests."""

from __future__ import annotations

import gc
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.project import ROOT, load_script

# A shell lets its jobs in the background ignore Ctrl-C, which tests send.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Collections of garbage leave out what stays: modules and tests, millions of objects."""
    gc.collect()
    gc.freeze()


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
        patch.syspath_prepend(str(ROOT / "tools" / "dev"))
        yield
