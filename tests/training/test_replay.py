"""Dumps of batches that were not finite, and what a second look at them says."""

from __future__ import annotations

import dataclasses
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.nonfinite import nan_gradient
from helpers.project import load_script
from helpers.runs import load, replay, write_config
from torch import nn

from onenet.assignment.criterion import Criterion
from onenet.errors import CheckpointError
from onenet.lightning.build import build_detector
from onenet.lightning.config import dump as as_yaml
from onenet.lightning.config import load_cfg
from onenet.training.dump import Dump

BOX, CLASS = [8.0, 8.0, 30.0, 40.0], 3


def dump_of(model: nn.Module, config: str) -> Dump:
    """Two images of noise, the first with an object."""
    return Dump(
        iteration=41,
        what="loss_ce = nan",
        engine="lightning",
        config=config,
        seed=7,
        precision="float32",
        torch="2.0",
        model=model.state_dict(),
        images=list(torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)),
        boxes=[torch.tensor([BOX]), torch.zeros(0, 4)],
        labels=[torch.tensor([CLASS]), torch.zeros(0, dtype=torch.int64)],
        files=["one.jpg", "two.jpg"],
    )


@pytest.fixture
def dumped(shapes, tmp_path) -> Callable[..., str]:
    """Writes the dump of a tiny detector, which a function may spoil."""

    def write(spoil: Callable[[nn.Module], None] = lambda _: None, **changes) -> str:
        cfg = load_cfg(write_config(tmp_path, shapes, **changes))
        torch.manual_seed(0)
        model = build_detector(cfg, training=True)
        with torch.no_grad():
            spoil(model)
        return str(dump_of(model, as_yaml(cfg)).save(tmp_path))

    return write


def set_nan(model: nn.Module) -> None:
    model.head.ltrb_pred.bias[2] = math.nan


def explode(model: nn.Module) -> None:
    model.head.feat1.weight.mul_(1e38)


def test_a_dump_reads_back_as_it_was_written(tmp_path):
    dump = dump_of(nn.Linear(1, 1), "SEED: 1")
    path = dump.save(tmp_path)
    assert path == tmp_path / "nonfinite_0000041.pt"
    assert dump.save(tmp_path, rank=3) == tmp_path / "nonfinite_0000041_rank3.pt"
    again = Dump.read(path)
    assert again.config == "SEED: 1" and again.files == ["one.jpg", "two.jpg"]
    assert all(map(torch.equal, again.images, dump.images))
    assert again.targets[0].boxes.tolist() == [BOX] and len(again.targets[1]) == 0
    assert again.targets[1].image_size == (64, 64)


def test_a_healthy_batch_does_not_go_wrong(dumped, capsys):
    assert not replay(dumped())
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == "everything is finite: it does not go wrong again"
    assert "not finite" not in out and "seed 7, torch 2.0" in out


@pytest.mark.parametrize("parts", [1, 2])
def test_a_weight_that_is_nan_is_told(dumped, capsys, parts):
    assert replay(dumped(set_nan, SOLVER__ACCUMULATE=parts))
    out = capsys.readouterr().out
    assert f"iteration 41, {parts} x {2 // parts} images" in out
    assert "before it, 1 of 4 values of head.ltrb_pred.bias were not finite" in out
    assert "loss_giou = nan\n" in out and "gradient norm = nan\n" in out
    assert re.search(r"loss_ce = \d", out)
    assert "output that is not finite: head.ltrb_pred (" in out
    assert "its input was finite" in out
    # Only the first image has an object, whose box it is.
    assert "one.jpg: " in out and "loss_bbox = nan" in out and "objects: 1" in out
    assert "  class 3 at 8.0, 8.0, 30.0, 40.0\n" in out
    assert out.endswith("it goes wrong again\n")


AUX = {"MODEL__OneNet__AUX__ENABLED": True, "SOLVER__MAX_ITER": 80}


def test_the_one_to_many_branch_is_told(dumped, capsys):
    """It predicts its boxes with the head's layer. Its matcher takes no box that is NaN."""
    assert replay(dumped(set_nan, **AUX, MODEL__OneNet__AUX__MATCHER="points"))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in lines if line.endswith("objects: 1")] == [
        "one.jpg",
        "one.jpg, head aux",
    ]


def test_losses_that_change_are_those_of_their_iteration(dumped, capsys):
    """40 of 80 iterations are done, so half the weight is left."""
    values = []
    for fall in ([], [0.0, 1.0]):
        assert not replay(dumped(**AUX, MODEL__OneNet__AUX__FALL=fall))
        values.append(float(re.search(r"loss_ce_aux = (\S+)", capsys.readouterr().out)[1]))
    assert values[1] == pytest.approx(values[0] / 2)


@pytest.mark.parametrize("parts", [1, 2])
def test_each_of_several_heads_is_told(dumped, capsys, parts):
    changes = {"MODEL__OneNet__NUM_HEADS": 2, "SOLVER__ACCUMULATE": parts}
    assert replay(dumped(set_nan, **changes))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in lines if line.endswith("objects: 1")] == [
        "one.jpg",
        "one.jpg, head 2",
    ]


def test_a_head_that_explodes_is_told(dumped, capsys):
    assert replay(dumped(explode))
    out = capsys.readouterr().out
    assert "output that is not finite: head.feat1 (" in out
    assert "before it" not in out


def test_a_value_of_the_config_can_be_changed(dumped, capsys):
    assert replay(dumped(set_nan), ["MODEL.OneNet.MATCHER", "hungarian"])
    assert "cost = nan" in capsys.readouterr().out


def test_a_gradient_alone_names_its_parameters(dumped, capsys, monkeypatch):
    forward = Criterion.forward

    def spoilt(*args):
        losses = forward(*args)
        return nan_gradient(losses) if torch.is_grad_enabled() else losses

    monkeypatch.setattr(Criterion, "forward", spoilt)
    assert replay(dumped())
    out = capsys.readouterr().out
    assert "first output" not in out and "loss_giou = nan" not in out
    # The box convolution and all that is below it, but not the class convolution.
    assert (
        " parameters are not finite: head.ltrb_pred.bias, head.ltrb_pred.weight, head.feat" in out
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("images", []),
        ("images", [torch.zeros(3, 8), torch.zeros(3, 8)]),
        ("files", ["one.jpg"]),
        ("files", ["one.jpg", "\x1b[2J.jpg"]),
        ("iteration", "41"),
        ("boxes", [1, 2]),
    ],
)
def test_no_dump(tmp_path, field, value):
    path = dump_of(nn.Linear(1, 1), "").save(tmp_path)
    content = load(path)
    for wrong in ({**content, field: value}, {k: v for k, v in content.items() if k != field}):
        torch.save(wrong, path)
        with pytest.raises(CheckpointError, match="is no dump of a batch: "):
            Dump.read(path)


def test_weights_of_another_model_are_refused(dumped, tmp_path):
    path = dumped()
    other = dataclasses.replace(Dump.read(Path(path)), model={"a": torch.zeros(7)})
    with pytest.raises(CheckpointError, match="does not fit its config: .*[Uu]nexpected key"):
        replay(str(other.save(tmp_path)))


@pytest.mark.parametrize(("spoil", "status"), [(set_nan, 1), (lambda _: None, 0), (None, 2)])
def test_the_command_line(dumped, tmp_path, monkeypatch, capsys, spoil, status):
    path = dumped(spoil) if spoil else tmp_path / "none.pt"
    monkeypatch.setattr(sys, "argv", ["train_net.py", "--replay", str(path)])
    with pytest.raises(SystemExit) as stop:
        load_script("projects/OneNet/train_net.py").main()
    assert stop.value.code == status
    out, err = capsys.readouterr()
    if status == 2:
        assert err.startswith("error: ") and "none.pt" in err and err.count("\n") == 1
    else:
        assert "wrong again" in out and not err
