"""Detectron2's engine: batches in parts, and averaged weights."""

from __future__ import annotations

import pytest

pytest.importorskip("detectron2")

import shutil
from pathlib import Path

import torch
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from helpers.detectron2_runs import as_input, d2_process, pictures, small_cfg, train_d2, truth
from helpers.nonfinite import nan_loss
from helpers.runs import assert_same, load, metrics, replay, train, write_config

from onenet.assignment.criterion import Criterion
from onenet.d2 import Trainer
from onenet.d2.steps import guarded
from onenet.training.dump import Dump


def trainers(shapes: Path, kind: type, **options) -> list[SimpleTrainer]:
    """Two on the same batch of two images, whole and in parts; layers treat images alone."""
    image = pictures(shapes, count=1)[0]
    mirrored = image.flip(2)
    data = [as_input(image, truth(image, 3)), as_input(mirrored, truth(mirrored, 1, seed=1))]
    found = []
    for parts in ("1", "2"):
        torch.manual_seed(0)
        wide = ["MODEL.RESNETS.NORM", "FrozenBN", "MODEL.OneNet.CONV_CHANNELS", "64"]
        cfg = small_cfg("fcos", *wide, "SOLVER.ACCUMULATE", parts)
        model = build_model(cfg)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0, fused=kind is SimpleTrainer)
        trainer = kind(model, [data], optimizer, **options)
        found.append(trainer if parts == "1" else guarded(trainer, cfg))
    return found


def flat(tensors) -> torch.Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors if tensor is not None])


def test_a_step_in_parts_is_one_on_the_whole(shapes):
    whole, parts = trainers(shapes, SimpleTrainer)
    losses = []
    for trainer in (whole, parts):
        with EventStorage() as storage:
            trainer.run_step()
        losses.append({name: value for name, (value, _) in storage.latest().items()})
        for name in ("data_time", "rank_data_time"):
            del losses[-1][name]
    assert set(losses[0]) == {"total_loss", "loss_ce", "loss_giou", "loss_bbox"}
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    one, other = (flat(p.grad for p in t.model.parameters()) for t in (whole, parts))
    assert one.norm() > 0 and (one - other).norm() < 1e-5 * one.norm()


def test_a_step_in_parts_of_mixed_precision(shapes):
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    _, parts = trainers(shapes, AMPTrainer, grad_scaler=scaler, precision=torch.bfloat16)
    whole, _ = trainers(shapes, SimpleTrainer)
    assert isinstance(parts, AMPTrainer) and parts.state_dict()["grad_scaler"]["scale"] == 1024
    before = flat(parts.model.parameters())
    for trainer in (whole, parts):
        with EventStorage():
            trainer.run_step()
    moved, expected = (flat(t.model.parameters()) - before for t in (parts, whole))
    assert (moved - expected).norm() < 0.3 * expected.norm()  # it is bfloat16


@pytest.fixture(scope="module")
def averaged(shapes, tmp_path_factory) -> Path:
    """The folder of a run of 2 iterations in parts, with an average, saved after each."""
    folder = tmp_path_factory.mktemp("averaged")
    config = write_config(
        folder, shapes, SOLVER__MAX_ITER=2, SOLVER__CHECKPOINT_PERIOD=1, SOLVER__ACCUMULATE=2,
        MODEL_EMA__ENABLED=True,
    )  # fmt: skip
    train_d2(config)
    return folder / "run"


def test_the_average_is_saved_and_evaluated(averaged):
    first, last = load(averaged / "model_0000000.pth"), load(averaged / "model_final.pth")
    assert first["ema"]["updates"] == 1 and last["ema"]["updates"] == 2
    name = "head.feat1.weight"
    old, new = first["ema"]["model"][name], last["model"][name]
    torch.testing.assert_close(last["ema"]["model"][name], old + 9 / 11 * (new - old))
    assert not torch.equal(last["ema"]["model"][name], new)
    assert (averaged / "log.txt").read_text().count("Evaluating the averaged weights") == 1


def test_both_engines_evaluate_the_average(averaged, tmp_path):
    (found,) = (line for line in metrics(averaged) if "bbox/AP" in line)
    words = ("--eval-only", "MODEL.WEIGHTS", averaged / "model_final.pth", "OUTPUT_DIR")
    config = averaged.parent / "tiny.yaml"
    embedded = train(config, *words, tmp_path / "embedded")
    train_d2(config, *words, tmp_path / "d2")
    for engine in ("embedded", "d2"):
        assert "a moving average (EMA), from" in (tmp_path / engine / "log.txt").read_text()
    assert embedded["bbox/AP"] == pytest.approx(found["bbox/AP"], abs=0.1, nan_ok=True)


def test_the_average_is_resumed(averaged, tmp_path, monkeypatch):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(averaged / "model_0000000.pth", run)
    (run / "last_checkpoint").write_text("model_0000000.pth")
    with d2_process():
        seen = []
        monkeypatch.setattr(Trainer, "train", lambda self: seen.append(self))
        train_d2(averaged.parent / "tiny.yaml", "--resume", "OUTPUT_DIR", run)
    (trainer,) = seen
    assert trainer.ema.updates == 1 and trainer.start_iter == 1
    saved = load(run / "model_0000000.pth")["ema"]["model"]
    assert_same(dict(trainer.ema.model.state_dict()), dict(saved))


def test_the_average_starts_from_the_weights_that_were_loaded(averaged, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(Trainer, "train", lambda self: seen.append(self))
    weights = averaged / "model_final.pth"
    train_d2(averaged.parent / "tiny.yaml", "MODEL.WEIGHTS", weights, "OUTPUT_DIR", tmp_path)
    expected = load(weights)["ema"]["model"]["head.feat1.weight"]
    assert torch.equal(seen[0].ema.model.head.feat1.weight, expected)
    assert torch.equal(seen[0].model.head.feat1.weight, expected) and seen[0].ema.updates == 0


def test_an_average_cannot_come_on_the_way(averaged, tmp_path, capsys):
    run = shutil.copytree(averaged, tmp_path / "run")
    words = ("--resume", "OUTPUT_DIR", run, "MODEL_EMA.ENABLED", False)
    with pytest.raises(SystemExit) as stop:
        train_d2(averaged.parent / "tiny.yaml", *words)
    assert stop.value.code == 2
    assert "this config: MODEL_EMA.ENABLED is False, its run had True" in capsys.readouterr().err


def break_at(monkeypatch, iterations: set[int]) -> None:
    """Have the losses of some iterations go wrong."""
    forward, calls = Criterion.forward, []

    def spoilt(self, *args):
        calls.append(0)
        losses = forward(self, *args)
        return losses if len(calls) not in iterations else nan_loss(losses)

    monkeypatch.setattr(Criterion, "forward", spoilt)


def test_as_many_in_a_row_as_tolerated_are_skipped(shapes, tmp_path, monkeypatch, capsys):
    break_at(monkeypatch, {2, 4, 5})
    config = write_config(
        tmp_path, shapes, SOLVER__SKIP_NONFINITE=1, SOLVER__CHECKPOINT_PERIOD=1,
        MODEL_EMA__ENABLED=True, DATASETS__TEST=[],
    )  # fmt: skip
    with pytest.raises(SystemExit) as stop:
        train_d2(config)
    assert stop.value.code == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "error: iteration 5: loss_giou = nan, gradient norm = nan, on " in error
    run = tmp_path / "run"
    assert "iteration 2 is skipped, number 1 since the start" in (run / "log.txt").read_text()
    states = [load(run / f"model_{i:07d}.pth") for i in range(4)]
    for before, after in ((0, 1), (2, 3)):
        assert_same(states[before]["model"], states[after]["model"])
        assert_same(states[before]["ema"]["model"], states[after]["ema"]["model"])
    assert not torch.equal(*(s["model"]["head.cls_score.bias"] for s in states[1:3]))
    # The dump is that of the iteration that was one too many.
    path = run / "nonfinite_0000005.pt"
    assert str(path) in error
    dump = Dump.read(path)
    assert_same(dump.model, states[3]["model"])
    assert len(dump.images) == len(dump.files) == 4 and dump.engine == "detectron2"
    with d2_process():
        assert not replay(str(path))  # five calls later
        break_at(monkeypatch, {1})
        assert replay(str(path))
    assert "loss_giou = nan" in capsys.readouterr().out


def test_deterministic_algorithms_are_chosen(shapes, tmp_path, monkeypatch):
    chosen = []
    monkeypatch.setattr("onenet.d2.main.make_deterministic", chosen.append)
    monkeypatch.setattr(Trainer, "train", lambda self: None)
    train_d2(write_config(tmp_path, shapes), "CUDNN_DETERMINISTIC", True)
    assert [cfg.CUDNN_DETERMINISTIC for cfg in chosen] == [True]
