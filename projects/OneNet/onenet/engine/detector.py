"""A config's detector on the embedded engine's backbone."""

from __future__ import annotations

import logging
from typing import Any

import torch

from onenet.config import model_options
from onenet.model import OneNet, memory_format

from .backbone import build_backbone
from .config import ConfigError

logger = logging.getLogger(__name__)


def build_detector(cfg: Any) -> OneNet:
    """The model, randomly initialised, on the CPU.

    Raises:
        ConfigError: values that do not fit each other.
    """
    try:
        backbone = build_backbone(cfg)
        model = OneNet(**model_options(cfg, backbone, backbone.shapes))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return model.to(memory_format=memory_format(_device(cfg)))


def choose_device(cfg: Any) -> torch.device:
    """``MODEL.DEVICE``, or the CPU (with a line in the log) where CUDA is asked for in vain."""
    device = _device(cfg)
    if device.type != torch.device(cfg.MODEL.DEVICE).type:
        logger.info(
            "MODEL.DEVICE is %s, but there is no CUDA: running on the CPU", cfg.MODEL.DEVICE
        )
    return device


def _device(cfg: Any) -> torch.device:
    device = torch.device(cfg.MODEL.DEVICE)
    vain = device.type == "cuda" and not torch.cuda.is_available()
    return torch.device("cpu") if vain else device
