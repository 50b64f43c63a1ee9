"""YOLOv1 from a config; importing this registers it for the embedded engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from onenet.backbones.registry import build_backbone
from onenet.config.build import frame_options, head_shapes

from .registry import register
from .yolov1 import YOLOCriterion, YOLOHead, YOLOv1


@register("YOLOv1")
def build_yolov1(cfg: Any) -> YOLOv1:
    """On the embedded engine's backbone."""
    backbone = build_backbone(cfg)
    return YOLOv1(**yolov1_options(cfg, backbone, backbone.shapes))


def yolov1_options(cfg: Any, backbone: nn.Module, shapes: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of :class:`~onenet.baselines.yolov1.YOLOv1` around an engine's backbone.

    Args:
        shapes: as for :func:`~onenet.config.build.model_options`.

    Raises:
        ConfigError: ``IN_FEATURES`` names a map that the backbone does not make.
        ValueError: names the key whose value does not fit.
    """
    c, inputs = cfg.MODEL.YOLOv1, head_shapes(cfg, shapes)
    if len(inputs) != 1:
        raise ValueError(
            f"MODEL.OneNet.IN_FEATURES is {list(cfg.MODEL.OneNet.IN_FEATURES)}; expected one map, "
            "such as ['res5'], as YOLOv1 reads no more"
        )
    if cfg.MODEL.OneNet.NMS:
        raise ValueError(
            "MODEL.OneNet.NMS is OneNet's; expected False, as YOLOv1 has NMS anyway, at the IoU "
            "MODEL.YOLOv1.NMS_THRESH"
        )
    stride = inputs[0].stride
    if c.INPUT_SIZE % max(stride, 32):
        raise ValueError(
            f"MODEL.YOLOv1.INPUT_SIZE is {c.INPUT_SIZE}; expected a multiple of {max(stride, 32)} "
            "px, the stride of the map that YOLOv1 reads"
        )
    return {
        **frame_options(cfg, backbone),
        "head": YOLOHead(
            in_channels=inputs[0].channels,
            in_size=c.INPUT_SIZE // stride,
            num_classes=cfg.MODEL.OneNet.NUM_CLASSES,
            grid=c.GRID,
            boxes=c.BOXES,
            channels=c.CHANNELS,
            hidden=c.HIDDEN,
            dropout=c.DROPOUT,
        ),
        "criterion": YOLOCriterion(coord_weight=c.COORD_WEIGHT, noobj_weight=c.NOOBJ_WEIGHT),
        "input_size": c.INPUT_SIZE,
        "nms_iou": c.NMS_THRESH,
    }
