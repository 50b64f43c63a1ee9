"""OneNet's own backbones in Detectron2 are the embedded engine's: names, values, refusals."""

from __future__ import annotations

import pytest

pytest.importorskip("detectron2")

import torch
from detectron2.modeling import build_model
from helpers.detectron2_runs import (
    CONFIGS,
    as_detections,
    as_input,
    assert_same_detections,
    spread,
)

from onenet.d2.config import load_cfg
from onenet.errors import ConfigError
from onenet.inference.postprocess import to_image
from onenet.lightning.build import build_detector
from onenet.lightning.config import load_cfg as load_embedded

NANO = CONFIGS / "onenet.nano.yaml"
_HEAD = ["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu", "MODEL.OneNet.NUM_CLASSES", "5"]
_TIMM = ["MODEL.TIMM.NAME", "mobilenetv3_small_050", "MODEL.BACKBONE.FREEZE_AT", "2"]
_FCOS = [
    *("MODEL.OneNet.HEAD", "FCOS", "MODEL.OneNet.IN_FEATURES", "['p3', 'p4', 'p5', 'p6', 'p7']"),
    *("MODEL.FPN.IN_FEATURES", "['res3', 'res4', 'res5']", "MODEL.FPN.OUT_CHANNELS", "32"),
    *("MODEL.OneNet.CONV_CHANNELS", "64", "MODEL.OneNet.NUM_CONV", "1"),
]
BACKBONES = {
    "build_mobilenetv3_backbone": ["MODEL.MOBILENETV3.NORM", "FrozenBN"],
    "build_retinanet_mobilenetv3_fpn_backbone": _FCOS,
    "build_timm_backbone": [*_TIMM, "MODEL.OneNet.DECONV_CHANNEL", "[288, 16, 16, 16]"],
    "build_retinanet_timm_fpn_backbone": [*_TIMM, *_FCOS],
    "build_timm_fpn_backbone": [
        *(*_TIMM, *_FCOS, "MODEL.OneNet.HEAD", "RetinaNet"),
        *("MODEL.OneNet.IN_FEATURES", "['p3', 'p4', 'p5', 'p6']"),
        *("MODEL.ANCHOR_GENERATOR.SIZES", "[[16, 32]]"),
    ],
}


@pytest.mark.parametrize("name", BACKBONES)
def test_both_engines_have_the_same_model(name):
    if "timm" in name:
        pytest.importorskip("timm")
    opts = [*_HEAD, "MODEL.BACKBONE.NAME", name, *BACKBONES[name]]
    torch.manual_seed(0)
    ours = spread(build_detector(load_embedded(NANO, opts))).eval()
    theirs = build_model(load_cfg(NANO, opts)).eval()
    theirs.load_state_dict(ours.state_dict())
    trained = [{n for n, p in m.named_parameters() if p.requires_grad} for m in (ours, theirs)]
    assert trained[0] == trained[1]
    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    with torch.no_grad():
        expected = to_image(ours([image])[0], (64, 96), (64, 96))
        found = as_detections(theirs([as_input(image)])[0])
    assert_same_detections(expected, found)


def test_values_that_do_not_fit():
    opts = [*_HEAD, "MODEL.BACKBONE.NAME", "build_timm_backbone"]
    with pytest.raises(ConfigError, match="MODEL.TIMM.NAME is ''"):
        load_cfg(NANO, opts)
    with pytest.raises(ConfigError, match="those are a ResNet's"):
        load_cfg(NANO, [*opts, "MODEL.WEIGHTS", "torchvision://resnet18"])
