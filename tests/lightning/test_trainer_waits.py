"""The host does not wait for the device in an iteration, and still nothing goes wrong unseen."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.nonfinite import CPU, Later, nan_gradient, nan_loss, values
from helpers.runs import assert_same, load, metrics, train, write_config
from torch.utils._python_dispatch import TorchDispatchMode

from onenet.assignment.criterion import Criterion
from onenet.errors import NonFiniteError
from onenet.lightning.trainer import Trainer
from onenet.training.dump import Dump
from onenet.training.history import History
from onenet.training.hooks import Average


def test_values_are_read_once_in_their_order():
    history = History(CPU, 0)
    assert history.immediate and history.read() == []
    history.add(values(1.0, 2.0), ["a.jpg"])
    history.add(values(3.0, 4.0), ["b.jpg"])
    assert history.read() == [
        {"loss_ce": 1.0, "loss_bbox": 2.0},
        {"loss_ce": 3.0, "loss_bbox": 4.0},
    ]
    assert history.read() == []


def test_the_first_iteration_that_went_wrong_is_named_with_its_images():
    history = History(CPU, 100)
    history.add(values(1.0, 2.0), ["a.jpg"])
    history.read()
    history.add(values(1.0, 2.0), ["b.jpg"])
    history.add(values(1.0, math.inf), ["c.jpg", "d.jpg"])
    history.add(values(math.nan, 2.0), ["e.jpg"])
    with pytest.raises(NonFiniteError) as error:
        history.read()
    assert "iteration 103: loss_bbox = inf, on c.jpg, d.jpg." in str(error.value)


def test_elsewhere_than_on_the_cpu_reading_waits_for_a_reason():
    assert not History(torch.device("cuda"), 0).immediate


class Waits(TorchDispatchMode):
    """Counts operators whose result the host must know."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None) -> Any:
        name = function.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        masked = any(i is not None and i.dtype == torch.bool for i in indices)
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "equal") or masked:
            self.found[name] += 1
        return function(*args, **(kwargs or {}))


def steps_under(monkeypatch, context: Any) -> None:
    """Have every step of a training run in a context, and what averages the weights after it."""
    step, average = Trainer.step, Average.after_step

    def watched(self, batch):
        with context:
            return step(self, batch)

    def watched_average(self):
        with context:
            average(self)

    monkeypatch.setattr(Trainer, "step", watched)
    monkeypatch.setattr(Average, "after_step", watched_average)


FAST = {
    "SOLVER__MAX_ITER": 2,
    "SOLVER__OPTIMIZER": "ADAMW",
    "SOLVER__CLIP_GRADIENTS__ENABLED": True,
    "SOLVER__CLIP_GRADIENTS__CLIP_TYPE": "full_model",
    "SOLVER__ACCUMULATE": 2,
    "MODEL_EMA__ENABLED": True,
    "DATASETS__TEST": [],
}


def test_a_step_asks_for_no_value(shapes, tmp_path, monkeypatch):
    waits = Waits()
    with waits:
        torch.ones(2)[torch.tensor([True, False])].sum().item()
    assert waits.found == {"index": 1, "_local_scalar_dense": 1}  # it would see them
    waits.found.clear()
    steps_under(monkeypatch, waits)
    train(write_config(tmp_path, shapes, **FAST))
    assert not waits.found


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_step_on_cuda_does_not_synchronise(shapes, tmp_path, monkeypatch):
    class Forbidden:
        def __enter__(self) -> None:
            torch.cuda.set_sync_debug_mode("error")

        def __exit__(self, *_: Any) -> None:
            torch.cuda.set_sync_debug_mode("default")

    steps_under(monkeypatch, Forbidden())
    train(write_config(tmp_path, shapes, MODEL__DEVICE="cuda", **FAST))
    assert len(metrics(tmp_path / "run")) == 1


def break_at(monkeypatch, iteration: int, spoil: Any) -> None:
    """Have ``spoil`` change the losses of one iteration."""
    forward, count = Criterion.forward, Counter()

    def spoilt(self, *args):
        losses = forward(self, *args)
        count["calls"] += 1
        return spoil(losses) if count["calls"] == iteration else losses

    monkeypatch.setattr(Criterion, "forward", spoilt)


@pytest.mark.parametrize(
    ("spoil", "told"), [(nan_loss, "loss_giou = nan"), (nan_gradient, "gradient norm = nan")]
)
def test_what_goes_wrong_between_two_looks_is_told_before_anything_is_saved(
    shapes, tmp_path, monkeypatch, capsys, spoil, told
):
    monkeypatch.setattr("onenet.lightning.trainer.History", Later)
    break_at(monkeypatch, 3, spoil)
    seen, step = [], Trainer.step

    def noted(self, batch):
        state = {name: value.clone() for name, value in self.model.state_dict().items()}
        seen.append((self, batch, state))
        return step(self, batch)

    monkeypatch.setattr(Trainer, "step", noted)
    config = write_config(
        tmp_path, shapes, SOLVER__CHECKPOINT_PERIOD=2, MODEL_EMA__ENABLED=True, DATASETS__TEST=[],
    )  # fmt: skip
    with pytest.raises(SystemExit) as stop:
        train(config)
    assert stop.value.code == 1 and len(seen) == 4  # one went on before the look
    error = capsys.readouterr().err
    assert "iteration 3: " in error and told in error
    assert sum(f"{i:06d}.jpg" in error for i in range(12)) == 4
    run: Path = tmp_path / "run"
    assert (run / "last_checkpoint").read_text() == "model_0000001.pth"
    assert not (run / "model_0000003.pth").exists() and not (run / "model_final.pth").exists()
    # Nothing was touched by it, nor by what came after it.
    trainer, batch, state = seen[2]
    assert_same(dict(trainer.model.state_dict()), state)
    assert all(p.isfinite().all() for p in trainer.ema.model.parameters())
    assert all(v.isfinite().all() for v in load(run / "model_0000001.pth")["model"].values())
    # And it can be looked at again.
    assert f"train_net.py --replay {run / 'nonfinite_0000003.pt'}." in error
    dump = Dump.read(run / "nonfinite_0000003.pt")
    assert (dump.iteration, dump.seed, dump.precision) == (3, 11, "float32")
    assert told in dump.what and dump.torch == str(torch.__version__)
    assert_same(dump.model, state)
    assert dump.files == [item.file_name for item in batch]
    for name in ("boxes", "labels"):
        assert_same(getattr(dump, name), [getattr(item.targets, name) for item in batch])
    assert_same(dump.images, [item.image for item in batch])


def test_statistics_that_are_not_finite_are_not_saved(shapes, tmp_path, monkeypatch, capsys):
    step = Trainer.step

    def overflow(self, batch):
        losses = step(self, batch)
        if self.iteration == 1:
            self.model.backbone.res3[0].conv1.norm.running_var[2] = math.inf
        return losses

    monkeypatch.setattr(Trainer, "step", overflow)
    config = write_config(tmp_path, shapes, SOLVER__CHECKPOINT_PERIOD=1, DATASETS__TEST=[])
    with pytest.raises(SystemExit) as stop:
        train(config)
    assert stop.value.code == 1
    told = "iteration 2: backbone.res3.0.conv1.norm.running_var in the model is NaN or infinite. "
    assert told in capsys.readouterr().err
    assert (tmp_path / "run" / "last_checkpoint").read_text() == "model_0000000.pth"
