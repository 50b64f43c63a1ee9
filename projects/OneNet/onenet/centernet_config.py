"""The keys of :mod:`onenet.centernet`: config to core objects, for both engines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from .centernet import CenterCriterion, CenterHead
from .config import frame_options, head_shapes


def add_centernet_config(cfg: Any) -> None:
    """Add the keys that CenterNet has beyond OneNet's; needs ``add_onenet_config`` first.

    Of ``MODEL.OneNet`` it has ``NUM_CLASSES``, ``IN_FEATURES``, ``DECONV_CHANNEL``,
    ``DECONV_KERNEL``, ``DCN``, ``MODULATE_DEFORM``, ``PRIOR_PROB`` and ``NMS``.

    Args:
        cfg: as for :func:`~onenet.config.add_onenet_config`; changed in place.
    """
    c = cfg.MODEL.CenterNet = type(cfg)()
    # Channels between the two convolutions of each branch.
    c.CHANNELS = 64
    # Side of the neighbourhood, in cells, in which only the best score is kept; 1 keeps all.
    c.PEAK_KERNEL = 3
    # Loss weights; the heat map's is 1.
    c.SIZE_WEIGHT = 0.1
    c.OFFSET_WEIGHT = 1.0


def centernet_options(cfg: Any, backbone: nn.Module, shapes: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of :class:`~onenet.centernet.CenterNet` around an engine's backbone.

    Args:
        shapes: as for :func:`~onenet.config.model_options`.

    Raises:
        ValueError: a value that does not fit, with its key.
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
