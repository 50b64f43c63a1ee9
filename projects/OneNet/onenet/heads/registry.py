"""What ``MODEL.OneNet.HEAD`` can name.

A head of your own needs no change here::

    @HEAD_REGISTRY.register()
    def MyHead(cfg, shapes):  # MODEL.OneNet.HEAD "MyHead"
        return ...
"""

from __future__ import annotations

from typing import Any

from fvcore.common.registry import Registry

from .base import Head
from .deconv import DeconvHead
from .fcos import FCOSHead
from .retinanet import RetinaNetHead

# ``(cfg, shapes) -> Head``, where ``shapes`` has ``channels`` and ``stride`` (px) of each map in
# MODEL.OneNet.IN_FEATURES.
HEAD_REGISTRY = Registry("ONENET_HEAD")


@HEAD_REGISTRY.register()
def CenterNet(cfg: Any, shapes: list[Any]) -> Head:
    """Deconvolution head on res2…res5."""
    c = cfg.MODEL.OneNet
    return DeconvHead(
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
        init=c.INIT,
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
        init=c.INIT,
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
        init=c.INIT,
    )


def _shared_channels(shapes: list[Any]) -> int:
    channels = {shape.channels for shape in shapes}
    if len(channels) != 1:
        raise ValueError(
            "heads with shared towers need maps of equal channels (an FPN backbone), "
            f"got {[shape.channels for shape in shapes]}"
        )
    return channels.pop()
