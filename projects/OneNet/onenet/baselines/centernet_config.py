"""CenterNet from a config; importing this registers it for the embedded engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from onenet.backbones.registry import build_backbone
from onenet.config.build import frame_options, head_shapes

from .centernet import CenterCriterion, CenterHead, CenterNet
from .registry import register


@register("CenterNet")
def build_centernet(cfg: Any) -> CenterNet:
    """On the embedded engine's backbone."""
    backbone = build_backbone(cfg)
    return CenterNet(**centernet_options(cfg, backbone, backbone.shapes))


def centernet_options(cfg: Any, backbone: nn.Module, shapes: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of :class:`~onenet.baselines.centernet.CenterNet` around an engine's backbone.

    Args:
        shapes: as for :func:`~onenet.config.build.model_options`.

    Raises:
        ConfigError: names the key whose value does not fit.
        ValueError: a constructor refuses a value.
    """
    neck, c = cfg.MODEL.OneNet, cfg.MODEL.CenterNet
    inputs = head_shapes(cfg, shapes)
    return {
        **frame_options(cfg, backbone),
        "head": CenterHead(
            in_channels=[shape.channels for shape in inputs],
            stride=inputs[0].stride,
            num_classes=neck.NUM_CLASSES,
            deconv_channels=neck.DECONV_CHANNEL,
            deconv_kernels=neck.DECONV_KERNEL,
            dcn=neck.DCN,
            modulated=neck.MODULATE_DEFORM,
            channels=c.CHANNELS,
            prior_prob=neck.PRIOR_PROB,
        ),
        "criterion": CenterCriterion(size_weight=c.SIZE_WEIGHT, offset_weight=c.OFFSET_WEIGHT),
        "peak_kernel": c.PEAK_KERNEL,
    }
