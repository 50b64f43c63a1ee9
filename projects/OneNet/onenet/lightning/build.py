"""The model of a config, on the embedded engine's backbone."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

import onenet.baselines.centernet_config
import onenet.baselines.sparse_rcnn_config
import onenet.baselines.torchvision
import onenet.baselines.transformers
import onenet.baselines.yolov1_config  # noqa: F401  (all register themselves)
from onenet.backbones.registry import build_backbone
from onenet.baselines.registry import BASELINE_REGISTRY
from onenet.config.build import model_options
from onenet.config.device import device_of
from onenet.detector import OneNet
from onenet.errors import ConfigError, look_up
from onenet.ops.memory_format import memory_format


def build_detector(cfg: Any, *, training: bool = False) -> nn.Module:
    """The model that ``MODEL.META_ARCHITECTURE`` names, randomly initialised, on the CPU.

    Args:
        training: with what only training needs.

    Raises:
        ConfigError: an unknown name, or values that do not fit each other.
    """
    models = [("OneNet", partial(_build_onenet, training=training)), *BASELINE_REGISTRY]
    build = look_up(models, "MODEL.META_ARCHITECTURE", cfg.MODEL.META_ARCHITECTURE)
    try:
        model = build(cfg)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return model.to(memory_format=memory_format(device_of(cfg)))


def _build_onenet(cfg: Any, *, training: bool) -> OneNet:
    backbone = build_backbone(cfg)
    return OneNet(**model_options(cfg, backbone, backbone.shapes, training=training))
