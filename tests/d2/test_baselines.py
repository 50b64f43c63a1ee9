"""CenterNet on Detectron2, and what Detectron2 does not take from the embedded engine."""

from __future__ import annotations

import pytest

pytest.importorskip("detectron2")

import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone, build_model
from helpers.configs import BASELINES
from helpers.detectron2_runs import (
    assert_checkpoint_is_the_embedded_engines,
    assert_same_as_embedded,
    assert_same_losses,
    name_of,
    spread,
)
from helpers.runs import load, write_config

from onenet.backbones.registry import build_backbone as build_embedded_backbone
from onenet.baselines import centernet as core
from onenet.d2 import CenterNet, add_onenet_config
from onenet.d2.config import load_cfg
from onenet.errors import ConfigError
from onenet.lightning.build import build_detector
from onenet.lightning.config import load_cfg as load_embedded

SMALL = [
    "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.OneNet.NUM_CLASSES", "5",
    "MODEL.OneNet.DECONV_CHANNEL", "[512, 32, 32, 32]",
]  # fmt: skip


def both(*opts: str):
    """The embedded engine's CenterNet and Detectron2's with its weights."""
    file = BASELINES / "centernet.res18.nodcn.yaml"
    torch.manual_seed(0)
    embedded = spread(build_detector(load_embedded(file, [*SMALL, *opts])))
    torch.nn.init.constant_(embedded.head.size_pred.bias, 6.0)  # cells
    model = build_model(load_cfg(file, [*SMALL, *opts]))
    model.load_state_dict(embedded.state_dict())
    return embedded, model


@pytest.mark.parametrize("opts", [[], ["MODEL.OneNet.NMS", "True"]], ids=["peaks", "nms"])
def test_detections_are_those_of_the_embedded_engine(shapes, opts):
    embedded, model = both(*opts)
    assert isinstance(model, CenterNet) and isinstance(model, core.CenterNet)
    assert_same_as_embedded(embedded, model, shapes)


def test_losses_are_those_of_the_embedded_engine(shapes):
    embedded, model = both()
    assert_same_losses(embedded, model, shapes)


def test_it_trains_and_its_checkpoint_is_the_embedded_engines(shapes, tmp_path):
    small = {
        "MODEL__META_ARCHITECTURE": "CenterNet",
        "SOLVER__MAX_ITER": 2,
        "SOLVER__IMS_PER_BATCH": 2,
    }
    file = write_config(tmp_path, shapes, DATASETS__TEST=[name_of(shapes)], **small)
    assert_checkpoint_is_the_embedded_engines(file, tmp_path)
    assert "head.size_pred.weight" in load(tmp_path / "run" / "model_final.pth")["model"]


def test_keys_for_detectron2s_own_tools():
    cfg = get_cfg()
    add_onenet_config(cfg)
    assert cfg.MODEL.CenterNet.PEAK_KERNEL == 3


def test_an_even_neighbourhood_is_refused():
    opts = [*SMALL, "MODEL.CenterNet.PEAK_KERNEL", "2"]
    with pytest.raises(ValueError, match="MODEL.CenterNet.PEAK_KERNEL"):
        build_model(load_cfg(BASELINES / "centernet.res18.nodcn.yaml", opts))


@pytest.mark.parametrize("opts", [[], ["MODEL.META_ARCHITECTURE", "torchvision.FCOS"]])
def test_torchvisions_detectors_are_the_embedded_engines(opts):
    name = "centernet.res18.nodcn.yaml" if opts else "retinanet.res50.yaml"
    with pytest.raises(ConfigError, match="--engine lightning.*GeneralizedRCNN") as error:
        load_cfg(BASELINES / name, opts)
    assert ("command line" if opts else name) in str(error.value)


def test_the_pyramid_of_faster_rcnn_is_detectron2s():
    thin = ["MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"]
    thin += ["MODEL.FPN.OUT_CHANNELS", "8", "MODEL.DEVICE", "cpu"]
    cfg = load_embedded(BASELINES / "fasterrcnn.res50.yaml", thin)
    torch.manual_seed(0)
    ours = build_embedded_backbone(cfg).eval()
    their_cfg = get_cfg()
    for key in ("BACKBONE", "RESNETS", "FPN"):
        their_cfg.MODEL[key].update(cfg.MODEL[key])
    theirs = build_backbone(their_cfg).eval()
    theirs.load_state_dict(ours.state_dict())
    strides = {name: shape.stride for name, shape in theirs.output_shape().items()}
    assert strides == {name: shape.stride for name, shape in ours.shapes.items()}
    x = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
