"""One seed, one machine: the same weights."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.configs import R50, refused
from helpers.runs import assert_same, load, train, write_config

from onenet.lightning.trainer import Trainer


def run(shapes: Path, folder: Path, workers: int, **changes) -> dict[str, torch.Tensor]:
    changes |= {"DATALOADER__NUM_WORKERS": workers, "SOLVER__MAX_ITER": 3, "DATASETS__TEST": []}
    train(write_config(folder, shapes, **changes))
    return load(folder / "run" / "model_final.pth")["model"]


@pytest.mark.slow
def test_any_number_of_data_workers_gives_the_same_weights(shapes, tmp_path):
    alone = run(shapes, tmp_path / "0", 0)
    for workers in (1, 4):
        assert_same(run(shapes, tmp_path / str(workers), workers), alone)
    other = run(shapes, tmp_path / "other", 0, SEED=12)
    assert not torch.equal(other["head.cls_score.weight"], alone["head.cls_score.weight"])


@pytest.fixture
def algorithms() -> Iterator[None]:
    """Puts the choice of algorithms back."""
    fill = torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = False
    torch.utils.deterministic.fill_uninitialized_memory = fill


@pytest.mark.usefixtures("algorithms")
@pytest.mark.parametrize("wanted", [True, False])
def test_deterministic_algorithms_are_chosen(shapes, tmp_path, monkeypatch, wanted):
    found, step = [], Trainer.step

    def noted(self, batch):
        found.append(torch.are_deterministic_algorithms_enabled())
        found.append(torch.is_deterministic_algorithms_warn_only_enabled())
        found.append(torch.backends.cudnn.deterministic)
        found.append(os.environ.get("CUBLAS_WORKSPACE_CONFIG") == ":4096:8")
        return step(self, batch)

    monkeypatch.setattr(Trainer, "step", noted)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    changes = {"SOLVER__MAX_ITER": 1, "DATASETS__TEST": [], "CUDNN_DETERMINISTIC": wanted}
    train(write_config(tmp_path, shapes, **changes))
    assert found[0] is found[2] is found[3] is wanted
    assert found[1] or not wanted


def test_benchmarks_of_cudnn_are_not_deterministic():
    told = refused(R50, "CUDNN_DETERMINISTIC", "True", "CUDNN_BENCHMARK", "True")
    assert "CUDNN_DETERMINISTIC and CUDNN_BENCHMARK are both True" in told


def test_a_negative_number_to_skip_is_refused():
    assert "SOLVER.SKIP_NONFINITE is -1; expected" in refused(R50, "SOLVER.SKIP_NONFINITE", "-1")
