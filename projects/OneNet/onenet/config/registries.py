"""What ``MODEL.OneNet.HEAD``, ``MATCHER`` and ``LOCATION_COST`` can name.

A new one needs no change here::

    @HEAD_REGISTRY.register()
    def MyHead(cfg, shapes):  # MODEL.OneNet.HEAD "MyHead"
        return ...
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fvcore.common.registry import Registry
from torch import nn

from onenet.assignment.costs import PredefinedAnchor, PredefinedPoint
from onenet.assignment.matchers import HungarianMatcher, Matcher, MinCostMatcher
from onenet.heads.base import Head
from onenet.heads.deconv import CenterNetHead
from onenet.heads.fcos import FCOSHead
from onenet.heads.retinanet import RetinaNetHead

# Values of MODEL.OneNet.HEAD: ``(cfg, shapes) -> Head``, where ``shapes`` are those of the maps in
# MODEL.OneNet.IN_FEATURES, each with ``channels`` and ``stride``.
HEAD_REGISTRY = Registry("ONENET_HEAD")
# What LOCATION_COST "predefined" means for a head, under the head's name: ``cfg -> module``.
PREDEFINED_COSTS: dict[str, Callable[[Any], nn.Module]] = {}
# Values of MODEL.OneNet.MATCHER: called with the keywords of Matcher.
MATCHER_REGISTRY = Registry("ONENET_MATCHER")


def _shared_channels(shapes: list[Any]) -> int:
    channels = {shape.channels for shape in shapes}
    if len(channels) != 1:
        raise ValueError(
            "heads with shared towers need maps of equal channels (an FPN backbone), "
            f"got {[shape.channels for shape in shapes]}"
        )
    return channels.pop()


@HEAD_REGISTRY.register()
def CenterNet(cfg: Any, shapes: list[Any]) -> Head:
    """Deconvolution head on res2…res5."""
    c = cfg.MODEL.OneNet
    return CenterNetHead(
        in_channels=[shape.channels for shape in shapes],
        stride=shapes[0].stride,
        num_classes=c.NUM_CLASSES,
        deconv_channels=c.DECONV_CHANNEL,
        deconv_kernels=c.DECONV_KERNEL,
        dcn=c.DCN,
        modulated=c.MODULATE_DEFORM,
        activation=c.ACTIVATION,
        num_stages=c.NUM_HEADS,
        inference_stages=c.INFERENCE_HEADS,
        prior_prob=c.PRIOR_PROB,
    )


@HEAD_REGISTRY.register()
def FCOS(cfg: Any, shapes: list[Any]) -> Head:
    """Shared towers, grid points."""
    c = cfg.MODEL.OneNet
    return FCOSHead(
        in_channels=_shared_channels(shapes),
        strides=[shape.stride for shape in shapes],
        num_classes=c.NUM_CLASSES,
        num_convs=c.NUM_CONV,
        channels=c.CONV_CHANNELS,
        norm=c.CONV_NORM,
        prior_prob=c.PRIOR_PROB,
    )


@HEAD_REGISTRY.register()
def RetinaNet(cfg: Any, shapes: list[Any]) -> Head:
    """Shared towers, anchors."""
    c = cfg.MODEL.OneNet
    anchors = cfg.MODEL.ANCHOR_GENERATOR
    if len(anchors.ASPECT_RATIOS) != 1:
        raise ValueError(
            "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS must hold one list, shared by all levels, "
            f"got {len(anchors.ASPECT_RATIOS)}"
        )
    # One list of sizes stands for all levels, as in Detectron2.
    sizes = list(anchors.SIZES) * (len(shapes) if len(anchors.SIZES) == 1 else 1)
    return RetinaNetHead(
        in_channels=_shared_channels(shapes),
        strides=[shape.stride for shape in shapes],
        num_classes=c.NUM_CLASSES,
        anchor_sizes=sizes,
        aspect_ratios=anchors.ASPECT_RATIOS[0],
        anchor_offset=anchors.OFFSET,
        num_convs=c.NUM_CONV,
        channels=c.CONV_CHANNELS,
        prior_prob=c.PRIOR_PROB,
    )


def _centre_distance(cfg: Any) -> nn.Module:
    return PredefinedPoint(l1_weight=cfg.MODEL.OneNet.L1_COST)


def _centre_distance_by_level(cfg: Any) -> nn.Module:
    c = cfg.MODEL.OneNet
    if len(c.OBJECT_SIZES_OF_INTEREST) != len(c.IN_FEATURES):
        raise ValueError(
            "MODEL.OneNet.OBJECT_SIZES_OF_INTEREST must hold a range for each of the "
            f"{len(c.IN_FEATURES)} maps in IN_FEATURES, got {len(c.OBJECT_SIZES_OF_INTEREST)}"
        )
    return PredefinedPoint(l1_weight=c.L1_COST, level_sizes=c.OBJECT_SIZES_OF_INTEREST)


def _anchor_overlap(cfg: Any) -> nn.Module:
    c = cfg.MODEL.OneNet
    return PredefinedAnchor(l1_weight=c.L1_COST, giou_weight=c.GIOU_COST)


PREDEFINED_COSTS.update(
    CenterNet=_centre_distance, FCOS=_centre_distance_by_level, RetinaNet=_anchor_overlap
)


@MATCHER_REGISTRY.register()
def minimum(**keywords: Any) -> Matcher:
    """The cheapest sample of every target."""
    return MinCostMatcher(**keywords)


@MATCHER_REGISTRY.register()
def hungarian(**keywords: Any) -> Matcher:
    """One-to-one assignment of least total cost."""
    return HungarianMatcher(**keywords)
