"""Helpers of the tests."""

from __future__ import annotations

import gc
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import helpers.interpreter  # noqa: F401  (first)
import pytest
from helpers.project import ROOT, load_script
from helpers.runs import train

# A shell lets its jobs in the background ignore Ctrl-C, which tests send.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):  # nohup lets programs ignore it
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_finish() -> None:
    """Keep the garbage collector off what stays: modules and tests, millions of objects."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny data set of six classes: 12 training and 6 validation images."""
    folder = tmp_path_factory.mktemp("data") / "shapes"
    maker = load_script("tools/make_shapes_dataset.py")
    maker.make_dataset(folder, train=12, val=6, size=64, seed=3)
    return folder


@pytest.fixture(scope="module", params=["lightning", "detectron2"])
def engine(request) -> Callable[..., Any]:
    """train_net.py's program with one of the engines."""
    if request.param == "lightning":
        return train
    pytest.importorskip("detectron2")
    from helpers.detectron2_runs import train_d2

    return train_d2


@pytest.fixture(scope="module")
def tools() -> Iterator[None]:
    """Makes the programs in ``tools/`` and their parts importable, as when one is run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "tools"))
        patch.syspath_prepend(str(ROOT / "tools" / "dev"))
        yield
