"""Sparse R-CNN on Detectron2: its pooler, and the same model as on the embedded engine."""

from __future__ import annotations

import pytest

pytest.importorskip("detectron2")

import torch
from detectron2.modeling import build_model
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from helpers.configs import ROOT
from helpers.detectron2_runs import (
    assert_same_as_embedded,
    assert_same_losses,
)

from onenet.baselines import sparse_rcnn as core
from onenet.d2 import SparseRCNN
from onenet.d2.config import load_cfg
from onenet.lightning.build import build_detector
from onenet.lightning.config import load_cfg as load_embedded

FILE = ROOT / "configs" / "baselines" / "sparsercnn.res50.yaml"
SMALL = [
    "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.OneNet.NUM_CLASSES", "5",
    "MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64",
    "MODEL.FPN.OUT_CHANNELS", "32", "MODEL.SparseRCNN.NUM_HEADS", "2",
    "MODEL.SparseRCNN.DIM_FEEDFORWARD", "32", "MODEL.SparseRCNN.DIM_DYNAMIC", "8",
]  # fmt: skip


def test_features_are_pooled_as_by_detectron2s_pooler():
    """To the bit; boxes without area, beyond the map and at the limits of levels included."""
    torch.manual_seed(0)
    strides = (4, 8, 16, 32)
    maps = [torch.randn(2, 3, 256 // s, 320 // s) for s in strides]
    corners, sizes = torch.rand(2, 300, 2) * 400 - 40, torch.rand(2, 300, 2) ** 3 * 700
    sizes[:, :7] = torch.tensor([0, 1e-3, 112, 224, 448, 112 - 1e-5, 5000])[:, None]
    boxes = torch.cat((corners, corners + sizes), dim=-1)
    theirs = ROIPooler(7, [1 / s for s in strides], sampling_ratio=2, pooler_type="ROIAlignV2")
    expected = theirs(maps, [Boxes(one) for one in boxes])
    assert torch.equal(core.pool(maps, strides, boxes), expected)


@pytest.fixture(scope="module")
def both():
    """The embedded engine's model, with scores apart, and Detectron2's with its weights."""
    torch.manual_seed(0)
    embedded = build_detector(load_embedded(FILE, SMALL))
    with torch.no_grad():
        torch.nn.init.normal_(embedded.init_proposal_boxes.weight, mean=0.5, std=0.2)
        for stage in embedded.head.head_series:
            stage.bboxes_delta.weight.mul_(0.2)
    model = build_model(load_cfg(FILE, SMALL))
    model.load_state_dict(embedded.state_dict())
    return embedded, model


def test_detections_are_those_of_the_embedded_engine(both, shapes):
    embedded, model = both
    assert isinstance(model, SparseRCNN) and isinstance(model, core.SparseRCNN)
    assert_same_as_embedded(embedded, model, shapes)


def test_losses_are_those_of_the_embedded_engine(both, shapes):
    embedded, model = both
    assert len(assert_same_losses(embedded, model, shapes)) == 6
