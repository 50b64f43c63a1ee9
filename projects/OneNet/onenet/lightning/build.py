"""A config's detector on the embedded engine's backbone."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from onenet.backbones.registry import build_backbone
from onenet.baselines.centernet import CenterNet
from onenet.baselines.torchvision import PEERS
from onenet.config.build import centernet_options, model_options
from onenet.detector import OneNet, memory_format
from onenet.errors import ConfigError

logger = logging.getLogger(__name__)


def _build_onenet(cfg: Any) -> OneNet:
    backbone = build_backbone(cfg)
    return OneNet(**model_options(cfg, backbone, backbone.shapes))


def _build_centernet(cfg: Any) -> CenterNet:
    backbone = build_backbone(cfg)
    return CenterNet(**centernet_options(cfg, backbone, backbone.shapes))


# Values of MODEL.META_ARCHITECTURE: ``cfg -> module``, which takes and gives what OneNet does. What
# ``load_weights`` shall know of it as backbone is below ``backbone``.
META_ARCHITECTURES: dict[str, Callable[[Any], nn.Module]] = {
    "OneNet": _build_onenet,
    "CenterNet": _build_centernet,
    **PEERS,
}


def build_detector(cfg: Any) -> nn.Module:
    """The model that ``MODEL.META_ARCHITECTURE`` names, randomly initialised, on the CPU.

    Raises:
        ConfigError: an unknown name, or values that do not fit each other.
    """
    name = cfg.MODEL.META_ARCHITECTURE
    if name not in META_ARCHITECTURES:
        raise ConfigError(
            f"MODEL.META_ARCHITECTURE must be one of {', '.join(META_ARCHITECTURES)}, got {name!r}"
        )
    try:
        model = META_ARCHITECTURES[name](cfg)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return model.to(memory_format=memory_format(device_of(cfg)))


def choose_device(cfg: Any) -> torch.device:
    """``MODEL.DEVICE``, or the CPU (with a line in the log) where CUDA is asked for in vain."""
    device = device_of(cfg)
    if device.type != torch.device(cfg.MODEL.DEVICE).type:
        logger.info(
            "MODEL.DEVICE is %s, but there is no CUDA: running on the CPU", cfg.MODEL.DEVICE
        )
    return device


def device_of(cfg: Any) -> torch.device:
    """The same, with nothing in the log."""
    device = torch.device(cfg.MODEL.DEVICE)
    vain = device.type == "cuda" and not torch.cuda.is_available()
    return torch.device("cpu") if vain else device
