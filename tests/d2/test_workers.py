"""Data workers of Detectron2's loaders: see tests/training/test_workers.py."""

from __future__ import annotations

import pytest

pytest.importorskip("detectron2")

from helpers.runs import load, write_config
from helpers.small_shm import QUICK, check_outcomes, needs_mounts


@needs_mounts
def test_a_full_shared_memory_ends_in_a_line_and_the_run_goes_on(shapes, tmp_path):
    done = check_outcomes("detectron2", write_config(tmp_path, shapes, **QUICK))
    saved = load(tmp_path / "run" / f"model_{done - 1:07d}.pth")
    assert saved["trainer"]["iteration"] == done - 1
