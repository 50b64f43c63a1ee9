"""Backbones: names and shapes of the original, torchvision's numbers, freezing, norms."""

from __future__ import annotations

import json

import pytest
import torch
import torchvision
from helpers import golden
from helpers.configs import CONFIGS
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from onenet.backbones.fpn import FPN
from onenet.backbones.registry import BACKBONE_REGISTRY, build_backbone
from onenet.backbones.resnet import ConvNorm, ResNet, Shape, freeze
from onenet.checkpoints.weights import to_detectron2_name
from onenet.lightning.build import build_detector
from onenet.lightning.config import load_cfg

close = torch.testing.assert_close
KEYS = json.loads((golden.FOLDER / "checkpoint_keys.json").read_text())
ALL = ("res2", "res3", "res4", "res5")


def norms(module: nn.Module) -> list[nn.Module]:
    kinds = nn.BatchNorm2d | nn.SyncBatchNorm | FrozenBatchNorm2d
    return [m for m in module.modules() if isinstance(m, kinds)]


@pytest.mark.parametrize("name", KEYS)
def test_names_and_shapes_are_the_originals(name):
    with torch.device("meta"):
        model = build_detector(load_cfg(CONFIGS / name))
    shapes = {k: list(v.shape) for k, v in model.state_dict().items()}
    ours = {k: v for k, v in shapes.items() if not k.endswith("num_batches_tracked")}
    theirs = {k: v for k, v in KEYS[name].items() if not k.endswith("num_batches_tracked")}
    assert ours == theirs
    extra = set(KEYS[name]) - set(shapes)
    assert not extra, "a strict load of the original's checkpoint would fail"


@pytest.mark.parametrize(("depth", "widths"), [(18, 64), (34, 64), (50, 256), (101, 256)])
def test_shapes_and_strides_of_the_stages(depth, widths):
    with torch.device("meta"):
        backbone = ResNet(depth=depth)
        maps = backbone(torch.empty(2, 3, 96, 64))
    expected = {name: Shape(widths * 2**i, 4 * 2**i) for i, name in enumerate(ALL)}
    assert backbone.shapes == expected and tuple(maps) == ALL
    for name, (channels, stride) in expected.items():
        assert maps[name].shape == (2, channels, 96 // stride, 64 // stride)


def test_stages_that_nobody_reads_are_not_built():
    with torch.device("meta"):
        backbone = ResNet(depth=18, out_features=["res3"])
        maps = backbone(torch.empty(1, 3, 32, 32))
    assert list(maps) == ["res3"] and not hasattr(backbone, "res4")


def test_shapes_and_strides_of_the_pyramid():
    with torch.device("meta"):
        backbone = FPN(ResNet(depth=18), in_features=["res3", "res4", "res5"], out_channels=16)
        maps = backbone(torch.empty(1, 3, 64, 128))
    assert backbone.shapes == {f"p{i}": Shape(16, 2**i) for i in range(3, 8)}
    sizes = {name: tuple(value.shape[2:]) for name, value in maps.items()}
    assert sizes == {"p3": (8, 16), "p4": (4, 8), "p5": (2, 4), "p6": (1, 2), "p7": (1, 1)}
    assert all(value.shape[1] == 16 for value in maps.values())


def test_a_pooled_top_is_every_other_point_of_the_coarsest_level():
    torch.manual_seed(0)
    backbone = FPN(ResNet(depth=18), in_features=list(ALL), out_channels=4, pooled_top=True).eval()
    with torch.inference_mode():
        maps = backbone(torch.randn(1, 3, 96, 160))
    assert backbone.shapes == {f"p{i}": Shape(4, 2**i) for i in range(2, 7)}
    assert maps["p5"].shape[2:] == (3, 5) and maps["p6"].shape[2:] == (2, 3)
    close(maps["p6"][0, :, 1, 2], maps["p5"][0, :, 2, 4])
    assert not any(name.startswith("top_block") for name in backbone.state_dict())


def test_the_pyramid_adds_the_doubled_coarser_map():
    """All weights of one output path known: p5 = 3·res5, p4 = 2·res4 + doubled 3·res5."""
    torch.manual_seed(0)
    backbone = FPN(ResNet(depth=18), in_features=["res4", "res5"], out_channels=1).eval()
    for parameter in (p for n, p in backbone.named_parameters() if not n.startswith("bottom_up")):
        nn.init.zeros_(parameter)
    for level, factor in ((4, 2.0), (5, 3.0)):
        backbone.get_submodule(f"fpn_lateral{level}").weight.data[0, 0] = factor
        backbone.get_submodule(f"fpn_output{level}").weight.data[0, 0, 1, 1] = 1.0
    x = torch.randn(1, 3, 64, 64)
    stages, maps = backbone.bottom_up(x), backbone(x)
    coarse = 3 * stages["res5"][:, :1]
    close(maps["p5"], coarse)
    doubled = coarse.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    close(maps["p4"], 2 * stages["res4"][:, :1] + doubled)


def test_the_pyramids_own_layers_start_with_zero_biases():
    backbone = FPN(ResNet(depth=18), in_features=["res5"], out_channels=4)
    own = [
        backbone.fpn_lateral5,
        backbone.fpn_output5,
        backbone.top_block.p6,
        backbone.top_block.p7,
    ]
    assert not any(layer.bias.any() for layer in own)


@pytest.mark.parametrize("depth", [18, 50])
def test_features_are_torchvisions(depth):
    torch.manual_seed(0)
    source = getattr(torchvision.models, f"resnet{depth}")(weights=None).eval()
    for norm in norms(source):  # numbers that a swapped weight would change
        for value in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
            value.uniform_(0.5, 1.5)
    state = {to_detectron2_name(name): value for name, value in source.state_dict().items()}
    state.pop(None)
    backbone = ResNet(depth=depth).eval()
    backbone.load_state_dict(state)
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected = source.maxpool(source.relu(source.bn1(source.conv1(x))))
        maps = backbone(x)
        for i, name in enumerate(ALL):
            expected = getattr(source, f"layer{i + 1}")(expected)
            close(maps[name], expected, rtol=1e-4, atol=1e-4)


def test_stride_in_1x1_moves_the_stride_of_bottlenecks_only():
    with torch.device("meta"):
        msra, plain = (ResNet(depth=50, stride_in_1x1=flag) for flag in (True, False))
        basic = ResNet(depth=18, stride_in_1x1=True)
    for backbone, strides in ((msra, (2, 1)), (plain, (1, 2)), (basic, (2, 1))):
        block = backbone.res3[0]
        assert (block.conv1.stride[0], block.conv2.stride[0]) == strides
        assert block.shortcut.stride == (2, 2)
    assert msra.res3[1].conv1.stride == (1, 1)
    assert msra.shapes == plain.shapes


@pytest.mark.parametrize("freeze_at", range(6))
def test_freeze_at(freeze_at):
    backbone = ResNet(depth=18, freeze_at=freeze_at)
    for i, name in enumerate(("stem", *ALL)):
        stage = backbone.get_submodule(name)
        frozen = i < freeze_at
        kind = FrozenBatchNorm2d if frozen else nn.BatchNorm2d
        assert {type(norm) for norm in norms(stage)} == {kind}
        assert {p.requires_grad for p in stage.parameters()} == {not frozen}


def test_freezing_keeps_what_the_norms_hold():
    module = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Sequential(nn.BatchNorm2d(2, eps=1e-3))).eval()
    for value in module[1][0].state_dict().values():
        value.fill_(3)
    x = torch.randn(1, 1, 4, 4)
    before = module(x)
    freeze(module)
    assert isinstance(module[1][0], FrozenBatchNorm2d)
    close(module.train()(x), before)


def test_a_frozen_backbone_gets_no_gradient_and_learns_no_statistics():
    backbone = ResNet(depth=18, freeze_at=2).train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    backbone(torch.randn(2, 3, 32, 32))["res5"].sum().backward()
    frozen = ("stem.", "res2.")
    for name, parameter in backbone.named_parameters():
        assert (parameter.grad is None) == name.startswith(frozen), name
    changed = {n for n, v in backbone.state_dict().items() if not torch.equal(v, before[n])}
    assert changed and not any(name.startswith(frozen) for name in changed)


@pytest.mark.parametrize(
    ("norm", "kind"),
    [("BN", nn.BatchNorm2d), ("FrozenBN", FrozenBatchNorm2d), ("SyncBN", nn.SyncBatchNorm)],
)
def test_norms(norm, kind):
    backbone = ResNet(depth=18, norm=norm)
    assert {type(module) for module in norms(backbone)} == {kind}
    names = {n for n in backbone.state_dict() if not n.endswith("num_batches_tracked")}
    plain = {n for n in ResNet(depth=18).state_dict() if not n.endswith("num_batches_tracked")}
    assert names == plain
    x = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert backbone.eval()(x)["res5"].isfinite().all()
    assert type(norms(ResNet(depth=18, norm=norm, freeze_at=1).stem)[0]) is FrozenBatchNorm2d


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depth": 20}, "DEPTH must be one of 18, 34, 50, 101, got 20"),
        ({"norm": "GN"}, "NORM must be one of BN, FrozenBN, SyncBN, got 'GN'"),
        ({"out_features": ["res1", "res2"]}, r"OUT_FEATURES must name some of.*\['res1', 'res2'\]"),
        ({"out_features": []}, r"OUT_FEATURES must name some of.*\[\]"),
        ({"freeze_at": -1}, "FREEZE_AT must be from 0 to 5, got -1"),
        ({"freeze_at": 6}, "FREEZE_AT must be from 0 to 5, got 6"),
    ],
)
def test_wrong_settings_of_the_resnet(settings, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        ResNet(**({"depth": 18} | settings))


def test_a_frozen_norm_works_within_its_convolution():
    torch.manual_seed(0)
    norm = FrozenBatchNorm2d(4)
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(norm, name).uniform_(0.5, 2)
    plain = nn.Conv2d(3, 4, 3, padding=1, bias=False)
    layer = ConvNorm(plain, norm, (1, 1))
    x = torch.randn(2, 3, 5, 6)
    expected = norm(plain(x))
    close(layer(x), expected)
    upstream = torch.randn_like(expected)
    (found,) = torch.autograd.grad(layer(x), layer.weight, upstream)
    close(found, torch.autograd.grad(expected, plain.weight, upstream)[0])
    with torch.autocast("cpu", torch.bfloat16):
        assert norm(plain(x)).dtype == torch.float32  # so would the maps of the whole network be
        found = layer(x)
    assert found.dtype == torch.bfloat16
    close(found.float(), expected, rtol=0.02, atol=0.05)


@pytest.mark.parametrize(
    ("in_features", "message"),
    [
        (["res2", "res5"], "needs res2, but the backbone makes res3, res4, res5"),
        (["res3", "res5"], r"IN_FEATURES.*\['res3', 'res5'\]"),
        (["res5", "res4"], r"IN_FEATURES.*\['res5', 'res4'\]"),
        (["res3", "res4"], r"IN_FEATURES.*\['res3', 'res4'\]"),
        ([], r"IN_FEATURES.*\[\]"),
    ],
)
def test_wrong_settings_of_the_pyramid(in_features, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        FPN(ResNet(depth=18, out_features=["res3", "res4", "res5"]), in_features=in_features)


def test_an_unknown_backbone_is_named():
    cfg = load_cfg(CONFIGS / "onenet.res18.dcn.yaml").clone()
    cfg.defrost()
    cfg.MODEL.BACKBONE.NAME = "build_swin"
    with pytest.raises(ValueError, match="BACKBONE.NAME must be one of.*got 'build_swin'"):
        build_backbone(cfg)


def test_a_users_backbone_is_found_by_its_name():
    class Halves(nn.Module):
        shapes = {f"res{i + 2}": Shape(8, 4 * 2**i) for i in range(4)}

    @BACKBONE_REGISTRY.register()
    def TestBackbone(cfg):
        return Halves()

    opts = ["MODEL.BACKBONE.NAME", "TestBackbone", "MODEL.OneNet.DECONV_CHANNEL", "[8, 8, 8, 8]"]
    try:
        model = build_detector(load_cfg(CONFIGS / "onenet.res18.nodcn.yaml", opts))
    finally:
        del BACKBONE_REGISTRY._obj_map["TestBackbone"]
    assert type(model.backbone) is Halves
    assert model.head.deconv.lateral_conv1.in_channels == 8
