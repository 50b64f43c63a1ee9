"""From a config to heads, matchers and criteria."""

from __future__ import annotations

import pytest
import torch
from helpers.configs import CONFIGS

from onenet import (
    HungarianMatcher,
    MinCostMatcher,
    OneNet,
    build_criterion,
    build_head,
    build_matcher,
)
from onenet.assignment.costs import PredefinedAnchor, PredefinedPoint, PredictedLocation
from onenet.assignment.registry import (
    CRITERION_REGISTRY,
    LOCATION_COST_REGISTRY,
    MATCHER_REGISTRY,
    matcher_options,
)
from onenet.backbones.resnet import Shape
from onenet.config.build import model_options
from onenet.heads.deconv import DeconvHead
from onenet.heads.fcos import FCOSHead
from onenet.heads.registry import HEAD_REGISTRY
from onenet.heads.retinanet import RetinaNetHead
from onenet.lightning.build import build_detector
from onenet.lightning.config import load_cfg
from onenet.ops.memory_format import memory_format

R18, FCOS, RETINANET = (
    CONFIGS / f"onenet.{name}.yaml" for name in ("res18.dcn", "fcos.res50", "retinanet.res50")
)
HEADS = {R18: DeconvHead, FCOS: FCOSHead, RETINANET: RetinaNetHead}
PLAIN = {f"res{i + 2}": Shape(64 * 2**i, 4 * 2**i) for i in range(4)}
PYRAMID = {f"p{i}": Shape(256, 2**i) for i in range(3, 8)}


def shapes(path):
    return PLAIN if path == R18 else PYRAMID


def changed(path, *changes):
    """A config with values that the engine's own check may refuse."""
    cfg = load_cfg(path).clone()
    cfg.defrost()
    for key, value in zip(changes[::2], changes[1::2], strict=True):
        setattr(cfg.MODEL.OneNet, key, value)
    return cfg


@pytest.mark.parametrize("path", HEADS, ids=lambda path: path.name)
def test_the_shipped_heads_are_built_with_their_values(path):
    cfg = load_cfg(path)
    with torch.device("meta"):
        head = build_head(cfg, shapes(path))
    assert type(head) is HEADS[path]
    assert head.num_classes == 80 and head.prior_prob == 0.01
    if path == R18:
        assert head.stride == 4 and hasattr(head.deconv.deconv1, "dcn")
        assert head.deconv.deconv1.dcn_offset.out_channels == 27
    else:
        assert head.strides == (8, 16, 32, 64, 128)
        assert sum(isinstance(m, torch.nn.Conv2d) for m in head.cls_conv_module) == 4


MATCHERS = [("minimum", MinCostMatcher), ("hungarian", HungarianMatcher)]


@pytest.mark.parametrize(("name", "kind"), MATCHERS)
def test_matchers_get_their_weights(name, kind):
    cfg = changed(R18, "MATCHER", name, "CLASS_COST", 3.0, "L1_COST", 7.0, "GIOU_COST", 0.5)
    cfg.MODEL.OneNet.ALPHA, cfg.MODEL.OneNet.GAMMA = 0.4, 1.5
    matcher = build_matcher(cfg)
    assert type(matcher) is kind and type(matcher.location) is PredictedLocation
    assert (matcher.class_weight, matcher.alpha, matcher.gamma) == (3.0, 0.4, 1.5)
    assert (matcher.location.l1_weight, matcher.location.giou_weight) == (7.0, 0.5)


def test_the_rules_of_other_detectors_have_their_keys():
    keys = {"ANCHOR_SCALE": 4.0, "IOU_THRESHOLDS": [0.3, 0.6], "LOW_QUALITY": False}
    keys |= {"ATSS_TOPK": 5, "SIMOTA_RADIUS": 1.5, "SIMOTA_TOPK": 7, "SIMOTA_IOU_COST": 2.0}
    cfg = changed(RETINANET)
    cfg.MODEL.OneNet.RULES.update(keys)
    matchers = {}
    for name in ("iou_threshold", "atss", "simota", "centre", "points"):
        cfg.MODEL.OneNet.MATCHER = name
        matchers[name] = build_matcher(cfg)
    found = matchers["iou_threshold"]
    assert (found.low, found.high, found.low_quality, found.location.scale) == (0.3, 0.6, False, 4)
    assert (matchers["atss"].location.topk, matchers["atss"].location.scale) == (5, 4)
    claims = matchers["simota"].location
    assert (claims.radius, claims.topk, claims.iou_weight) == (1.5, 7, 2)
    for name in ("centre", "points"):
        assert matchers[name].location.level_sizes.shape == (5, 2)
        assert build_matcher(changed(R18, "MATCHER", name)).location.level_sizes is None
    assert all(matcher.class_weight == 0 for matcher in matchers.values())


@pytest.mark.parametrize(
    ("name", "many"),
    [
        *((name, False) for name in ("minimum", "hungarian", "poto", "centre")),
        *((name, True) for name in ("topk", "alignment", "points", "iou_threshold", "atss")),
        ("simota", True),
    ],
)
def test_losses_of_rules_that_give_an_object_many_samples_are_over_the_positives(name, many):
    assert build_criterion(changed(R18, "MATCHER", name)).per_positive == many


def test_loss_weights_are_not_the_cost_weights():
    cfg = changed(R18, "CLASS_WEIGHT", 1.0, "L1_WEIGHT", 0.25, "GIOU_WEIGHT", 4.0, "GAMMA", 3.0)
    criterion = build_criterion(cfg)
    assert criterion.weights == {"loss_ce": 1.0, "loss_bbox": 0.25, "loss_giou": 4.0}
    assert criterion.gamma == criterion.matcher.gamma == 3.0
    assert criterion.matcher.class_weight == 2.0


@pytest.mark.parametrize(
    ("path", "kind"),
    [(R18, PredefinedPoint), (FCOS, PredefinedPoint), (RETINANET, PredefinedAnchor)],
)
def test_predefined_costs(path, kind):
    location = build_matcher(changed(path, "LOCATION_COST", "predefined")).location
    assert type(location) is kind
    if path == R18:
        assert location.level_sizes is None
    if path == FCOS:
        assert location.level_sizes.tolist()[0] == [-1, 64]
        assert location.level_sizes.shape == (5, 2)


def test_predefined_cost_of_fcos_needs_a_range_for_every_level():
    ranges = [[-1, 64], [64, 128]]
    cfg = changed(FCOS, "LOCATION_COST", "predefined", "OBJECT_SIZES_OF_INTEREST", ranges)
    with pytest.raises(ValueError, match="OBJECT_SIZES_OF_INTEREST.* 5 .*got 2"):
        build_matcher(cfg)
    for name in ("points", "centre"):
        cfg = changed(FCOS, "MATCHER", name, "OBJECT_SIZES_OF_INTEREST", ranges)
        with pytest.raises(ValueError, match="OBJECT_SIZES_OF_INTEREST.* 5 .*got 2"):
            build_matcher(cfg)
    build_matcher(changed(FCOS, "OBJECT_SIZES_OF_INTEREST", ranges))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("HEAD", "DETR"), "OneNet.HEAD must be one of CenterNet, FCOS, RetinaNet, got 'DETR'"),
        (("HEAD", "centernet"), "got 'centernet'"),
        (("MATCHER", "greedy"), "OneNet.MATCHER must be one of minimum, hungarian, .*got 'greedy'"),
        (("LOCATION_COST", "centre"), "COST must be one of predicted, predefined, got 'centre'"),
        (("LOCATION_COST", "fixed"), "predefined, got 'fixed'"),
        (("LOCATION_COST", "predefine"), "did you mean 'predefined'"),
        (
            ("CRITERION", "onenet"),
            "must be one of OneNet, got 'onenet'; did you mean 'OneNet'",
        ),
        (("CLASS_COST", 0.0, "L1_COST", 0.0, "GIOU_COST", 0.0), "CLASS_COST, L1_COST and GIOU"),
        (("IN_FEATURES", ["res3", "p4", "p5"]), r"IN_FEATURES names p4, p5.*makes res2, res3"),
        (("DECONV_CHANNEL", [99, 8, 8, 8]), "DECONV_CHANNEL.* is 99"),
    ],
)
def test_wrong_values_are_named_with_their_key(changes, message):
    cfg = changed(R18, *changes)
    with pytest.raises(ValueError, match=message):
        build_head(cfg, PLAIN)
        build_criterion(cfg)


def test_shared_towers_need_maps_of_equal_channels():
    with pytest.raises(ValueError, match=r"equal channels.*\[64, 128, 256, 512\]"):
        build_head(changed(R18, "HEAD", "FCOS"), PLAIN)


def test_anchors_given_once_stand_for_all_levels():
    cfg = changed(RETINANET, "CONV_CHANNELS", 8)
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16.0, 20.0]]
    head = build_head(cfg, PYRAMID)
    assert torch.equal(head.cell0, head.cell4) and head.cell0.shape == (6, 4)


def test_predefined_cost_of_an_unknown_head_is_refused():
    cfg = changed(FCOS, "LOCATION_COST", "predefined", "HEAD", "MyHead")
    with pytest.raises(ValueError, match="known for the heads CenterNet.*not for 'MyHead'"):
        build_matcher(cfg)


def test_aspect_ratios_must_be_shared():
    cfg = changed(RETINANET)
    cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [[1.0], [2.0]]
    with pytest.raises(ValueError, match="ASPECT_RATIOS must hold one list.*got 2"):
        build_head(cfg, PYRAMID)


def test_the_model_takes_preprocessing_and_inference_from_the_config():
    cfg = changed(R18, "NMS", True, "DCN", False, "DECONV_CHANNEL", [512, 4, 4, 4])
    cfg.TEST.DETECTIONS_PER_IMAGE = 17
    model = OneNet(**model_options(cfg, torch.nn.Identity(), PLAIN))
    assert (model.max_detections, model.nms_iou, model.size_divisibility) == (17, 0.5, 32)
    torch.testing.assert_close(model.pixel_mean.flatten().tolist(), cfg.MODEL.PIXEL_MEAN)
    torch.testing.assert_close(model.pixel_std.flatten().tolist(), cfg.MODEL.PIXEL_STD)
    cfg.MODEL.OneNet.NMS = False
    assert OneNet(**model_options(cfg, torch.nn.Identity(), PLAIN)).nms_iou is None


@pytest.fixture
def registered():
    """Registers for one test only."""
    added = []

    def register(registry, build):
        registry.register(build)
        added.append((registry, build.__name__))

    yield register
    for registry, name in added:
        del registry._obj_map[name]


def test_a_users_head_is_found_by_its_name(registered):
    def TestHead(cfg, given):
        return FCOSHead(
            in_channels=given[0].channels, strides=[given[0].stride], num_classes=2, num_convs=1
        )

    registered(HEAD_REGISTRY, TestHead)
    head = build_head(changed(R18, "HEAD", "TestHead", "IN_FEATURES", ["res3"]), PLAIN)
    assert head.strides == (8,) and head.num_classes == 2


def test_a_users_matcher_is_found_by_its_name(registered):
    def test_matcher(cfg):
        return HungarianMatcher(**matcher_options(cfg))

    registered(MATCHER_REGISTRY, test_matcher)
    matcher = build_matcher(changed(R18, "MATCHER", "test_matcher", "CLASS_COST", 1.0))
    assert isinstance(matcher, HungarianMatcher) and matcher.class_weight == 1.0


def test_a_users_location_cost_is_found_by_its_name(registered):
    def test_cost(cfg):
        return PredictedLocation(l1_weight=cfg.MODEL.OneNet.L1_COST, giou_weight=0.0)

    registered(LOCATION_COST_REGISTRY, test_cost)
    cfg = changed(R18, "LOCATION_COST", "test_cost", "L1_COST", 7.0)
    location = build_matcher(cfg).location
    assert (location.l1_weight, location.giou_weight) == (7.0, 0.0)


def test_a_users_criterion_is_found_by_its_name(registered):
    class OneLoss(torch.nn.Module):
        pass

    def test_criterion(cfg):
        return OneLoss()

    registered(CRITERION_REGISTRY, test_criterion)
    assert isinstance(build_criterion(changed(R18, "CRITERION", "test_criterion")), OneLoss)


def test_the_registries_are_clean_again():
    assert [name for name, _ in HEAD_REGISTRY] == ["CenterNet", "FCOS", "RetinaNet"]
    assert [name for name, _ in MATCHER_REGISTRY] == [
        "minimum",
        "hungarian",
        "poto",
        "topk",
        "alignment",
        "points",
        "centre",
        "iou_threshold",
        "atss",
        "simota",
    ]
    assert [name for name, _ in LOCATION_COST_REGISTRY] == ["predicted", "predefined"]
    assert [name for name, _ in CRITERION_REGISTRY] == ["OneNet"]


def test_maps_are_contiguous_on_the_cpu_where_batch_norm_is_exact_so_only():
    opts = ["MODEL.OneNet.DECONV_CHANNEL", "[512, 16, 16, 16]", "MODEL.DEVICE", "cpu"]
    model = build_detector(load_cfg(CONFIGS / "onenet.res18.nodcn.yaml", opts))
    with torch.no_grad():
        maps = model.backbone(model.batch([torch.zeros(3, 64, 96)]))
    assert all(value.is_contiguous() for value in maps.values())
    assert memory_format(torch.device("cuda", 1)) == torch.channels_last


def test_batch_norm_is_exact_on_maps_as_they_lie():
    """On maps of large mean and size; its error on the other layout is a hundred times as large."""
    torch.manual_seed(0)
    maps = (torch.randn(4, 8, 128, 160) * 2 + 5).contiguous(
        memory_format=memory_format(torch.device("cpu"))
    )
    norm = torch.nn.BatchNorm2d(8).train()
    exact = (maps.double() - maps.double().mean((0, 2, 3), True)) / (
        maps.double().var((0, 2, 3), False, keepdim=True) + norm.eps
    ).sqrt()
    assert (norm(maps) - exact).abs().max() < 5e-6
