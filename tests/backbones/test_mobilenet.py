"""MobileNetV3: its maps, names, norms and frozen stages, and the configs that use it."""

from __future__ import annotations

import pytest
import torch
from helpers.configs import CONFIGS, refused
from torchvision.models import mobilenet_v3_large, mobilenet_v3_small
from torchvision.ops import FrozenBatchNorm2d

from onenet.backbones.mobilenet import MobileNetV3
from onenet.checkpoints.weights import load_weights
from onenet.inference.fuse import fold_batch_norms
from onenet.lightning.build import build_detector
from onenet.lightning.config import load_cfg

NANO = CONFIGS / "onenet.nano.yaml"
CHANNELS = {"small": [16, 24, 48, 96], "large": [24, 40, 112, 160]}


@pytest.mark.parametrize("size", CHANNELS)
def test_maps_are_what_torchvision_computes_before_each_stride(size):
    source = {"small": mobilenet_v3_small, "large": mobilenet_v3_large}[size](weights=None).eval()
    backbone = MobileNetV3(size=size).eval()
    backbone.load_state_dict(backbone.from_classifier(source.state_dict()))
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        maps = backbone(x)
        expected = source.features[:-1](x)
    assert [s.channels for s in backbone.shapes.values()] == CHANNELS[size]
    for (name, found), stride in zip(maps.items(), (4, 8, 16, 32), strict=True):
        assert found.shape == (1, backbone.shapes[name].channels, 64 // stride, 96 // stride)
    torch.testing.assert_close(maps["res5"], expected)


def test_width_norms_and_frozen_stages():
    backbone = MobileNetV3(width=0.5, freeze_at=2)
    assert [s.channels for s in backbone.shapes.values()] == [16, 24, 56, 80]
    frozen = {name for name, p in backbone.named_parameters() if not p.requires_grad}
    assert {name.split(".")[1] for name in frozen} == {"0", "1", "2", "3"}
    kinds = [type(m) for m in backbone.features[:4].modules()]
    assert FrozenBatchNorm2d in kinds and torch.nn.BatchNorm2d not in kinds
    assert all(p.requires_grad for p in backbone.features[4:].parameters())
    frozen = MobileNetV3(size="small", norm="FrozenBN")
    assert not [m for m in frozen.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for options, message in (
        ({"size": "medium"}, "SIZE must be one of small, large, got 'medium'"),
        ({"norm": "GN"}, "NORM must be one of BN, FrozenBN, SyncBN, got 'GN'"),
        ({"width": 0}, "WIDTH must be above 0"),
        ({"freeze_at": 6}, "FREEZE_AT must be from 0 to 5, got 6"),
    ):
        with pytest.raises(ValueError, match=message):
            MobileNetV3(**options)


def test_every_batch_norm_is_folded():
    backbone = MobileNetV3(size="small").eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = backbone(x)
        assert fold_batch_norms(backbone) == sum(
            name.endswith("running_mean") for name in MobileNetV3(size="small").state_dict()
        )
        found = backbone(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_torchvisions_file_fills_the_backbone(tmp_path):
    source = mobilenet_v3_small(weights=None).state_dict()
    torch.save(source, tmp_path / "mobilenet_v3_small.pth")
    opts = ["MODEL.MOBILENETV3.SIZE", "small", "MODEL.OneNet.DECONV_CHANNEL", "[96, 8, 8, 8]"]
    model = build_detector(load_cfg(NANO, ["MODEL.WEIGHTS", "", *opts]))
    load_weights(model, str(tmp_path / "mobilenet_v3_small.pth"))
    own = model.backbone.state_dict()
    assert all(torch.equal(source[name], value) for name, value in own.items())


def test_a_pyramid_for_fcos():
    opts = ["MODEL.BACKBONE.NAME", "build_retinanet_mobilenetv3_fpn_backbone"]
    opts += ["MODEL.FPN.IN_FEATURES", "['res3', 'res4', 'res5']", "MODEL.OneNet.HEAD", "FCOS"]
    opts += ["MODEL.OneNet.IN_FEATURES", "['p3', 'p4', 'p5', 'p6', 'p7']", "MODEL.WEIGHTS", ""]
    model = build_detector(load_cfg(NANO, [*opts, "MODEL.FPN.OUT_CHANNELS", "64"])).eval()
    with torch.no_grad():
        found = model([torch.zeros(3, 64, 96, dtype=torch.uint8)])
    assert len(found[0]) == 100
    assert "backbone.bottom_up.features.0.0.weight" in model.state_dict()


def test_values_that_do_not_fit():
    name = ["MODEL.BACKBONE.NAME", "build_mobilenetv3_backbone"]
    message = refused(CONFIGS / "onenet.res50.nodcn.yaml", *name)
    assert "MODEL.WEIGHTS is 'detectron2://ImageNetPretrained" in message
    assert "those are a ResNet's" in message
    assert "'small', 'large'" in refused(NANO, "MODEL.MOBILENETV3.SIZE", "tiny")
    assert "a number above 0" in refused(NANO, "MODEL.MOBILENETV3.WIDTH", "0.0")
    assert "some of ['res2', 'res3', 'res4', 'res5']" in refused(
        NANO, "MODEL.OneNet.IN_FEATURES", "['p3']"
    )
