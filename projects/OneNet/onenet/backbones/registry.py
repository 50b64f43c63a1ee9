"""What ``MODEL.BACKBONE.NAME`` can name on the embedded engine.

Detectron2's engine has Detectron2's own registry, in which these names mean the same. A backbone of
your own needs no change here::

    @BACKBONE_REGISTRY.register()
    def MyBackbone(cfg):  # MODEL.BACKBONE.NAME "MyBackbone"
        return ...
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fvcore.common.registry import Registry
from torch import nn

from onenet.errors import look_up

from .fpn import FPN
from .mobilenet import MobileNetV3
from .resnet import ResNet
from .timm import TimmBackbone

# ``cfg -> module``, which maps images (B, 3, H, W) to ``{name: (B, C, h, w)}`` and has ``shapes``:
# by name what has the map's ``channels`` and ``stride`` (px), such as ``resnet.Shape``.
BACKBONE_REGISTRY = Registry("ONENET_BACKBONE")


def build_backbone(cfg: Any) -> nn.Module:
    """The backbone that ``MODEL.BACKBONE.NAME`` names, randomly initialised.

    Raises:
        ConfigError: no backbone has that name.
        ValueError: a value that does not fit, with its key.
    """
    return look_up(BACKBONE_REGISTRY, "MODEL.BACKBONE.NAME", cfg.MODEL.BACKBONE.NAME)(cfg)


@BACKBONE_REGISTRY.register()
def build_resnet_backbone(cfg: Any) -> ResNet:
    """ResNet alone."""
    return ResNet(
        depth=cfg.MODEL.RESNETS.DEPTH,
        norm=cfg.MODEL.RESNETS.NORM,
        out_features=cfg.MODEL.RESNETS.OUT_FEATURES,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        stride_in_1x1=cfg.MODEL.RESNETS.STRIDE_IN_1X1,
    )


@BACKBONE_REGISTRY.register()
def build_mobilenetv3_backbone(cfg: Any) -> MobileNetV3:
    """MobileNetV3 alone."""
    return MobileNetV3(**mobilenetv3_options(cfg))


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: Any) -> TimmBackbone:
    """A network of timm alone."""
    return TimmBackbone(**timm_options(cfg))


def mobilenetv3_options(cfg: Any) -> dict[str, Any]:
    """The arguments of :class:`~.mobilenet.MobileNetV3`, for both engines."""
    c = cfg.MODEL.MOBILENETV3
    freeze_at = cfg.MODEL.BACKBONE.FREEZE_AT
    return {"size": c.SIZE, "width": c.WIDTH, "norm": c.NORM, "freeze_at": freeze_at}


def timm_options(cfg: Any) -> dict[str, Any]:
    """The arguments of :class:`~.timm.TimmBackbone`, for both engines."""
    c = cfg.MODEL.TIMM
    freeze_at = cfg.MODEL.BACKBONE.FREEZE_AT
    return {
        "name": c.NAME,
        "out_indices": c.OUT_INDICES,
        "norm": c.NORM,
        "freeze_at": freeze_at,
    }


def _pyramid(build: Callable[[Any], nn.Module], cfg: Any, *, pooled_top: bool) -> FPN:
    return FPN(
        build(cfg),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        pooled_top=pooled_top,
    )


@BACKBONE_REGISTRY.register()
def build_retinanet_resnet_fpn_backbone(cfg: Any) -> FPN:
    """Pyramid with p6 and p7 made of res5 by convolutions."""
    return _pyramid(build_resnet_backbone, cfg, pooled_top=False)


@BACKBONE_REGISTRY.register()
def build_resnet_fpn_backbone(cfg: Any) -> FPN:
    """Pyramid with a pooled p6."""
    return _pyramid(build_resnet_backbone, cfg, pooled_top=True)


@BACKBONE_REGISTRY.register()
def build_retinanet_mobilenetv3_fpn_backbone(cfg: Any) -> FPN:
    """Pyramid on MobileNetV3 with p6 and p7 made of res5 by convolutions."""
    return _pyramid(build_mobilenetv3_backbone, cfg, pooled_top=False)


@BACKBONE_REGISTRY.register()
def build_retinanet_timm_fpn_backbone(cfg: Any) -> FPN:
    """Pyramid on a network of timm with p6 and p7 made of its last map by convolutions."""
    return _pyramid(build_timm_backbone, cfg, pooled_top=False)


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg: Any) -> FPN:
    """Pyramid on a network of timm with a pooled p6."""
    return _pyramid(build_timm_backbone, cfg, pooled_top=True)
