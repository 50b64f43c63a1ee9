"""Sparse R-CNN from a config; importing this registers it for the embedded engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from onenet.backbones.registry import build_backbone
from onenet.config.build import head_shapes

from .queries import query_options
from .registry import register
from .sparse_rcnn import DynamicHead, SparseRCNN


@register("SparseRCNN")
def build_sparse_rcnn(cfg: Any) -> SparseRCNN:
    """On the embedded engine's backbone."""
    backbone = build_backbone(cfg)
    return SparseRCNN(**sparse_rcnn_options(cfg, backbone, backbone.shapes))


def sparse_rcnn_options(cfg: Any, backbone: nn.Module, shapes: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of :class:`~.sparse_rcnn.SparseRCNN` around an engine's backbone.

    Args:
        shapes: as for :func:`~onenet.config.build.model_options`.

    Raises:
        ConfigError: names the key whose value does not fit.
        ValueError: a constructor refuses a value.
    """
    c = cfg.MODEL.SparseRCNN
    inputs = head_shapes(cfg, shapes)
    return {
        **query_options(cfg, backbone),
        "num_proposals": c.NUM_PROPOSALS,
        "head": DynamicHead(
            in_channels=[shape.channels for shape in inputs],
            strides=[shape.stride for shape in inputs],
            num_classes=cfg.MODEL.OneNet.NUM_CLASSES,
            num_stages=c.NUM_HEADS,
            num_attention_heads=c.NHEADS,
            feedforward=c.DIM_FEEDFORWARD,
            hidden=c.DIM_DYNAMIC,
            prior_prob=cfg.MODEL.OneNet.PRIOR_PROB,
            init=cfg.MODEL.OneNet.INIT,
        ),
    }
