"""The one-to-many branch in a run: what is saved, resumed, evaluated and exported."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers.runs import assert_same, load, metrics, train, trained, write_config

from onenet.checkpoints.weights import load_weights
from onenet.deploy.export import Deployed, to_torch
from onenet.errors import CheckpointError, ConfigError
from onenet.heads.base import Head
from onenet.heads.registry import HEAD_REGISTRY
from onenet.lightning.build import build_detector
from onenet.lightning.config import load_cfg

AUX = {
    "MODEL__OneNet__AUX__ENABLED": True,
    "MODEL__OneNet__INIT": "calm",
    "DATASETS__TEST": [],
}
# All that changes during a training.
FALLING = {
    **AUX,
    "MODEL__OneNet__AUX__FALL": [0.2, 0.9],
    "MODEL__OneNet__CLASS_TARGET": "iou",
    "MODEL__OneNet__TARGET_RAMP": 0.7,
    "MODEL__OneNet__AUX__CLASS_TARGET": "soft",
}
BRANCH = ["aux.feat.weight", "aux.feat.bias", "aux.cls_score.weight", "aux.cls_score.bias"]


def names(state, start="aux."):
    return [name for name in state if name.startswith(start)]


@pytest.fixture(scope="module")
def finished(shapes, tmp_path_factory):
    """A run with a branch and an average, of six iterations, whose fourth is a checkpoint."""
    folder = tmp_path_factory.mktemp("branch")
    changes = {"SOLVER__CHECKPOINT_PERIOD": 4, "MODEL_EMA__ENABLED": True, **FALLING}
    config = write_config(folder, shapes, **changes)
    train(config)
    return config, folder / "run"


def test_checkpoints_have_the_branch_and_the_result_has_not(finished):
    config, run = finished
    last, final = load(run / "model_0000005.pth"), load(run / "model_final.pth")
    assert names(last["model"]) == names(last["ema"]["model"]) == BRANCH
    deployed = build_detector(load_cfg(config)).state_dict()
    assert list(final["model"]) == list(deployed) and not names(final["model"])
    assert metrics(run)[-1]["loss_bbox_aux"] > 0


def test_a_run_that_is_resumed_ends_exactly_alike(finished, shapes, tmp_path):
    """With a weight that falls and a target that changes, over the iterations left to do."""
    _, run = finished
    changes = {"SOLVER__CHECKPOINT_PERIOD": 4, "MODEL_EMA__ENABLED": True, **FALLING}
    config = write_config(tmp_path, shapes, **changes)
    other = tmp_path / "run"
    other.mkdir()
    for name, content in (
        ("model_0000003.pth", (run / "model_0000003.pth").read_bytes()),
        ("last_checkpoint", b"model_0000003.pth"),
    ):
        (other / name).write_bytes(content)
    train(config, "--resume")
    ours, theirs = load(other / "model_0000005.pth"), load(run / "model_0000005.pth")
    assert_same(ours["model"], theirs["model"])
    assert_same(ours["ema"]["model"], theirs["ema"]["model"])


def test_the_weight_and_the_target_do_change(finished, shapes, tmp_path):
    """The same run with a constant weight, or a constant target, ends elsewhere."""
    _, run = finished
    expected = load(run / "model_final.pth")["model"]["head.cls_score.weight"]
    for name, value in (("AUX__FALL", []), ("TARGET_RAMP", 0.0)):
        changes = {**FALLING, f"MODEL__OneNet__{name}": value, "MODEL_EMA__ENABLED": True}
        train(write_config(tmp_path / name, shapes, **changes))
        other = load(tmp_path / name / "run" / "model_final.pth")["model"]
        assert not torch.equal(other["head.cls_score.weight"], expected)


def test_a_checkpoint_of_either_kind_is_evaluated_and_tuned(finished, caplog):
    config, run = finished
    cfg = load_cfg(config)
    found = []
    for name in ("model_0000005.pth", "model_final.pth"):  # both are the average
        model = build_detector(cfg).eval()
        load_weights(model, str(run / name), detector=True)
        assert model.aux is None
        with torch.no_grad():
            found.append(model([torch.zeros(3, 64, 64)])[0].scores)
    assert torch.equal(*found)
    caplog.set_level("INFO")
    tuned = build_detector(cfg, training=True)
    start = copy.deepcopy(tuned.aux.state_dict())
    load_weights(tuned, str(run / "model_final.pth"))
    assert "branch (MODEL.OneNet.AUX) keeps its initialisation" in caplog.text
    assert_same(tuned.aux.state_dict(), start)
    load_weights(tuned, str(run / "model_0000005.pth"))
    assert not torch.equal(tuned.aux.feat.weight, start["feat.weight"])


def test_another_number_of_classes_starts_both_class_layers(finished):
    config, run = finished
    tuned = build_detector(load_cfg(config, ["MODEL.OneNet.NUM_CLASSES", "2"]), training=True)
    start = tuned.aux.cls_score.weight.clone()
    load_weights(tuned, str(run / "model_0000005.pth"), new_classes=True)
    assert torch.equal(tuned.aux.cls_score.weight, start)
    with pytest.raises(CheckpointError, match="another number of classes"):
        load_weights(tuned, str(run / "model_0000005.pth"))


def test_a_run_without_a_branch_does_not_resume_one_that_has_it(finished, shapes, tmp_path, capsys):
    _, run = finished
    config = write_config(tmp_path, shapes, MODEL_EMA__ENABLED=True)
    (tmp_path / "run").mkdir()
    content = (run / "model_0000003.pth").read_bytes()
    (tmp_path / "run" / "model_0000003.pth").write_bytes(content)
    with pytest.raises(SystemExit):
        train(config, "--resume")
    message = capsys.readouterr().err
    assert "model_0000003.pth cannot be resumed" in message
    assert "MODEL.OneNet.AUX.ENABLED is False, its run had True" in message


def test_the_exported_graph_and_the_parameters_are_those_without_a_branch(shapes, tmp_path):
    config, weights = trained(tmp_path, shapes)
    graphs, counts = [], []
    for enabled in ("False", "True"):
        model = build_detector(load_cfg(config, ["MODEL.OneNet.AUX.ENABLED", enabled]))
        counts.append(sum(p.numel() for p in model.parameters()))
        model = build_detector(
            load_cfg(config, ["MODEL.OneNet.AUX.ENABLED", enabled]), training=True
        )
        assert (model.aux is not None) == (enabled == "True")
        load_weights(model, str(weights), detector=True)
        program = to_torch(Deployed(model))
        graphs.append((str(program.graph), list(program.state_dict)))
        assert not any(".aux" in name for name in program.state_dict)
    assert graphs[0] == graphs[1] and counts[0] == counts[1]


class Plain(Head):
    """A user's head that knows no branch."""

    def forward(self, features):
        raise NotImplementedError


def test_a_head_without_a_branch_is_named(shapes, tmp_path, monkeypatch):
    monkeypatch.setitem(HEAD_REGISTRY._obj_map, "Plain", lambda cfg, _: Plain(num_classes=6))
    changes = {"MODEL__OneNet__HEAD": "Plain", "MODEL__OneNet__AUX__ENABLED": True}
    cfg = load_cfg(write_config(tmp_path, shapes, **changes))
    with pytest.raises(ConfigError, match=r"AUX.ENABLED is True.*'Plain'.*make_branch"):
        build_detector(cfg, training=True)


def test_an_unknown_matcher_of_the_branch_is_named(shapes, tmp_path):
    cfg = load_cfg(write_config(tmp_path, shapes, **{**AUX, "MODEL__OneNet__AUX__MATCHER": "best"}))
    with pytest.raises(ConfigError, match="MODEL.OneNet.AUX.MATCHER.*alignment.*best"):
        build_detector(cfg, training=True)
