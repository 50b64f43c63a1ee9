"""The one-to-many branch with Detectron2: the embedded engine's losses, and what a run saves."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("detectron2")

import numpy as np
import torch
from detectron2.modeling import build_model
from helpers.detectron2_runs import SMALL, as_input, pictures, small_cfg, train_d2, truth
from helpers.runs import load, metrics, train, write_config

from onenet.lightning.build import build_detector
from onenet.lightning.config import load_cfg as load_embedded

AUX = ("MODEL.OneNet.AUX.ENABLED", "True", "MODEL.OneNet.INIT", "calm")
RUN = {
    "SOLVER__MAX_ITER": 3,
    "SOLVER__CHECKPOINT_PERIOD": 2,
    "MODEL_EMA__ENABLED": True,
    "MODEL__OneNet__AUX__ENABLED": True,
    "MODEL__OneNet__AUX__FALL": [0.2, 0.9],
    "MODEL__OneNet__CLASS_TARGET": "iou",
}


@pytest.mark.parametrize("name", ["plain", "fcos", "retinanet"])
def test_losses_equal_the_embedded_engines(name, shapes):
    path, words = SMALL[name]
    ours = build_detector(load_embedded(path, [*words, "MODEL.DEVICE", "cpu", *AUX]), training=True)
    theirs = build_model(small_cfg(name, *AUX))
    theirs.load_state_dict(ours.state_dict())
    images = pictures(shapes, 2)
    targets = [truth(image, 3 * i, seed=i) for i, image in enumerate(images)]
    a = ours.train()(images, targets)
    b = theirs.train()([as_input(*both) for both in zip(images, targets, strict=True)])
    assert list(a) == list(b) and len(b) == 6
    for name in a:
        assert b[name].item() == pytest.approx(a[name].item(), rel=1e-4), name


def scores(folder):
    results = json.loads((folder / "inference" / "coco_instances_results.json").read_text())
    return sorted(result["score"] for result in results)


def branch(state):
    return [name for name in state if name.startswith("aux.")]


def test_a_run_saves_the_branch_to_resume_from_and_a_result_without_it(shapes, tmp_path):
    config = write_config(tmp_path, shapes, **RUN)
    train_d2(config)
    run = tmp_path / "run"
    final, last = load(run / "model_final.pth"), load(run / "model_0000002.pth")
    assert not branch(final["model"]) and not branch(final["ema"]["model"])
    assert len(branch(last["model"])) == len(branch(last["ema"]["model"])) == 4
    assert (run / "last_checkpoint").read_text() == "model_0000002.pth"
    lines = metrics(run)
    assert any("loss_giou_aux" in line for line in lines)
    (expected,) = (line["bbox/AP"] for line in lines if "bbox/AP" in line)
    # Both engines evaluate the result as well as the checkpoint.
    own = scores(run)
    for name in ("model_final.pth", "model_0000002.pth"):
        words = ("--eval-only", "MODEL.WEIGHTS", run / name, "OUTPUT_DIR", tmp_path / "e")
        assert train(config, *words)["bbox/AP"] == pytest.approx(expected, abs=0.1, nan_ok=True)
        train_d2(config, *words)
        np.testing.assert_allclose(scores(tmp_path / "e"), own, atol=1e-5)


def test_a_finished_run_is_prolonged_from_its_last_checkpoint(shapes, tmp_path):
    config = write_config(tmp_path, shapes, **{**RUN, "DATASETS__TEST": []})
    train_d2(config)
    train_d2(config, "--resume", "SOLVER.MAX_ITER", "4")
    run = tmp_path / "run"
    assert load(run / "model_final.pth")["iteration"] == 3
    assert len(branch(load(run / "model_0000003.pth")["model"])) == 4


def test_the_weight_follows_the_iteration(shapes, tmp_path, monkeypatch):
    """Three iterations, and the same numbers in a run that is resumed after two."""
    from onenet.assignment.criterion import OneToManyCriterion

    found, forward = [], OneToManyCriterion.forward

    def noted(self, *args):
        found.append(self.current_weight)
        return forward(self, *args)

    monkeypatch.setattr(OneToManyCriterion, "forward", noted)
    changes = {**RUN, "DATASETS__TEST": [], "MODEL__OneNet__AUX__FALL": [0.0, 1.0]}
    config = write_config(tmp_path, shapes, **changes)
    train_d2(config)
    assert found == pytest.approx([1, 2 / 3, 1 / 3])
    (tmp_path / "run" / "last_checkpoint").write_text("model_0000001.pth")
    found.clear()
    train_d2(config, "--resume")
    assert found == pytest.approx([1 / 3])


def test_the_deployed_weights_start_alike_with_and_without_a_branch():
    states = []
    for words in (AUX[2:], AUX):
        torch.manual_seed(5)
        states.append(build_model(small_cfg("plain", *words)).state_dict())
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name])
