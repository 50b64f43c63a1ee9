"""Multi-head training with Detectron2: the embedded engine's losses, detections, checkpoints."""

from __future__ import annotations

import pytest

pytest.importorskip("detectron2")

import torch
from detectron2.modeling import build_model
from helpers.detectron2_runs import (
    as_detections,
    as_input,
    assert_same_detections,
    embedded,
    pictures,
    small_cfg,
    train_d2,
    truth,
)
from helpers.runs import metrics, train, write_config

from onenet.inference.postprocess import to_image

HEADS = ("MODEL.OneNet.NUM_HEADS", "3", "MODEL.OneNet.INFERENCE_HEADS", "2")


def test_losses_and_detections_equal_the_embedded_engines(shapes):
    ours, theirs = embedded("plain", *HEADS), build_model(small_cfg("plain", *HEADS)).eval()
    theirs.load_state_dict(ours.state_dict())
    images = pictures(shapes, 2)
    with torch.no_grad():
        found = theirs([as_input(image) for image in images])
        for image, detections, output in zip(images, ours(images), found, strict=True):
            size = tuple(image.shape[-2:])
            assert_same_detections(to_image(detections, size, size), as_detections(output))
    targets = [truth(image, 3 * i, seed=i) for i, image in enumerate(images)]
    a = ours.train()(images, targets)
    b = theirs.train()([as_input(*both) for both in zip(images, targets, strict=True)])
    assert list(a) == list(b) and len(b) == 9
    for name in a:
        assert b[name].item() == pytest.approx(a[name].item(), rel=1e-5), name


def test_the_embedded_engine_evaluates_what_detectron2_has_trained(shapes, tmp_path):
    changes = {"SOLVER__MAX_ITER": 2, "SOLVER__ACCUMULATE": 2, "MODEL__OneNet__NUM_HEADS": 3}
    config = write_config(tmp_path, shapes, **changes)
    train_d2(config)
    lines = metrics(tmp_path / "run")
    assert any("loss_bbox_3" in line for line in lines)
    (expected,) = (line["bbox/AP"] for line in lines if "bbox/AP" in line)
    weights = tmp_path / "run" / "model_final.pth"
    found = train(config, "--eval-only", "MODEL.WEIGHTS", weights, "OUTPUT_DIR", tmp_path / "e")
    assert found["bbox/AP"] == pytest.approx(expected, abs=0.1, nan_ok=True)
