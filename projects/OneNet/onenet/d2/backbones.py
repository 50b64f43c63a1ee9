"""OneNet's own backbones in Detectron2's registry, under the names of the embedded engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool, LastLevelP6P7

from onenet.backbones import mobilenet, timm
from onenet.backbones.registry import mobilenetv3_options, timm_options


class _Mapped(Backbone):
    """Tells Detectron2 the ``shapes`` of a backbone."""

    @property
    def size_divisibility(self) -> int:
        """A multiple of every stride, in px."""
        return max(shape.stride for shape in self.shapes.values())

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each map."""
        return {name: ShapeSpec(channels=s.channels, stride=s.stride) for name, s in _items(self)}


def _items(backbone: Any) -> Any:
    return backbone.shapes.items()


class MobileNetV3(mobilenet.MobileNetV3, _Mapped):
    """:class:`onenet.backbones.mobilenet.MobileNetV3` for Detectron2."""


class TimmBackbone(timm.TimmBackbone, _Mapped):
    """:class:`onenet.backbones.timm.TimmBackbone` for Detectron2."""


@BACKBONE_REGISTRY.register()
def build_mobilenetv3_backbone(cfg: Any, input_shape: ShapeSpec) -> MobileNetV3:
    """MobileNetV3 alone."""
    return MobileNetV3(**mobilenetv3_options(cfg))


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: Any, input_shape: ShapeSpec) -> TimmBackbone:
    """A network of timm alone."""
    return TimmBackbone(**timm_options(cfg))


@BACKBONE_REGISTRY.register()
def build_retinanet_mobilenetv3_fpn_backbone(cfg: Any, input_shape: ShapeSpec) -> FPN:
    """Pyramid on MobileNetV3 with p6 and p7 made of res5 by convolutions."""
    return _pyramid(build_mobilenetv3_backbone, cfg, pooled_top=False)


@BACKBONE_REGISTRY.register()
def build_retinanet_timm_fpn_backbone(cfg: Any, input_shape: ShapeSpec) -> FPN:
    """Pyramid on a network of timm with p6 and p7 made of its last map by convolutions."""
    return _pyramid(build_timm_backbone, cfg, pooled_top=False)


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg: Any, input_shape: ShapeSpec) -> FPN:
    """Pyramid on a network of timm with a pooled p6."""
    return _pyramid(build_timm_backbone, cfg, pooled_top=True)


def _pyramid(build: Callable[[Any, Any], Backbone], cfg: Any, *, pooled_top: bool) -> FPN:
    bottom_up = build(cfg, None)
    width = cfg.MODEL.FPN.OUT_CHANNELS
    shapes = bottom_up.output_shape()
    missing = [name for name in (*cfg.MODEL.FPN.IN_FEATURES, "res5") if name not in shapes]
    if missing:
        raise ValueError(
            f"the feature pyramid (MODEL.FPN.IN_FEATURES) needs {', '.join(missing)}, but the "
            f"backbone makes {', '.join(shapes)}"
        )
    top = LastLevelMaxPool() if pooled_top else LastLevelP6P7(shapes["res5"].channels, width)
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=width,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
