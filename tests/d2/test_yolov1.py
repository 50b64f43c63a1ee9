"""YOLOv1 on Detectron2: the embedded engine's numbers and checkpoints."""

from __future__ import annotations

import pytest

pytest.importorskip("detectron2")

import torch
from detectron2.modeling import build_model
from helpers.configs import ROOT
from helpers.detectron2_runs import (
    assert_checkpoint_is_the_embedded_engines,
    assert_same_as_embedded,
    assert_same_losses,
    name_of,
)
from helpers.runs import write_config

from onenet.baselines import yolov1 as core
from onenet.d2 import YOLOv1
from onenet.d2.config import load_cfg
from onenet.lightning.build import build_detector
from onenet.lightning.config import load_cfg as load_embedded

FILE = ROOT / "configs" / "baselines" / "yolov1.res18.yaml"
SMALL = {"INPUT_SIZE": 96, "CHANNELS": 8, "HIDDEN": 16, "DROPOUT": 0.0}


@pytest.fixture(scope="module")
def both():
    """The embedded engine's YOLOv1 and Detectron2's with its weights; scores lie far apart."""
    opts = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.OneNet.NUM_CLASSES", "5"]
    opts += [word for key in SMALL for word in (f"MODEL.YOLOv1.{key}", str(SMALL[key]))]
    torch.manual_seed(0)
    embedded = build_detector(load_embedded(FILE, opts))
    for layer in (embedded.head.box_pred, embedded.head.cls_score):
        torch.nn.init.normal_(layer.weight, std=0.2)
    model = build_model(load_cfg(FILE, opts))
    assert isinstance(model, YOLOv1) and isinstance(model, core.YOLOv1)
    model.load_state_dict(embedded.state_dict())
    return embedded, model


def test_detections_are_those_of_the_embedded_engine(shapes, both):
    embedded, model = both
    found = assert_same_as_embedded(embedded, model, shapes)
    assert all(len(one) > 0 for one in found)


def test_losses_are_those_of_the_embedded_engine(shapes, both):
    embedded, model = both
    assert_same_losses(embedded, model, shapes)


def test_it_trains_and_its_checkpoint_is_the_embedded_engines(shapes, tmp_path):
    file = write_config(
        tmp_path,
        shapes,
        MODEL__META_ARCHITECTURE="YOLOv1",
        MODEL__OneNet__IN_FEATURES=["res5"],
        SOLVER__MAX_ITER=2,
        SOLVER__IMS_PER_BATCH=2,
        DATASETS__TEST=[name_of(shapes)],
        **{f"MODEL__YOLOv1__{key}": value for key, value in SMALL.items()},
    )
    assert_checkpoint_is_the_embedded_engines(file, tmp_path)
