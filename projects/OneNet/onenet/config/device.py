"""The device that a config asks for, and whether it computes deterministically."""

from __future__ import annotations

import logging
import os
from typing import Any

import torch

from onenet.errors import ConfigError

logger = logging.getLogger(__name__)
# What MODEL.DEVICE may be; with Detectron2, whatever else torch knows, too.
DEVICES = "'cpu', 'cuda' or 'cuda:N'"


def choose_device(cfg: Any) -> torch.device:
    """``MODEL.DEVICE``, or the CPU, with a line in the log, if that is CUDA and there is none.

    Raises:
        ConfigError: no such device, or a number that no device of this machine has.
    """
    device = device_of(cfg)
    if device.type != torch.device(cfg.MODEL.DEVICE).type:
        logger.info(
            "MODEL.DEVICE is %s, but there is no CUDA: running on the CPU", cfg.MODEL.DEVICE
        )
    return device


def device_of(cfg: Any) -> torch.device:
    """The device of :func:`choose_device`, without the line in the log; raises what that raises."""
    try:
        device = torch.device(cfg.MODEL.DEVICE)
    except RuntimeError:
        raise ConfigError(f"MODEL.DEVICE is {cfg.MODEL.DEVICE!r}; expected {DEVICES}") from None
    if device.type != "cuda":
        return device
    if not torch.cuda.is_available():
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if device.index is not None and device.index >= count:
        numbers = "0" if count == 1 else f"0 to {count - 1}"
        raise ConfigError(
            f"MODEL.DEVICE is {cfg.MODEL.DEVICE!r}, but this machine has {count} CUDA device(s): "
            f"N must be {numbers}"
        )
    return device


def make_deterministic(cfg: Any) -> None:
    """Set what ``CUDNN_DETERMINISTIC`` says, for this process.

    Call it before anything runs on CUDA: cuBLAS reads its setting once.
    """
    torch.backends.cudnn.deterministic = cfg.CUDNN_DETERMINISTIC
    torch.use_deterministic_algorithms(cfg.CUDNN_DETERMINISTIC, warn_only=True)
    if cfg.CUDNN_DETERMINISTIC:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # It would fill what torch.empty() gives, which nothing here reads.
        torch.utils.deterministic.fill_uninitialized_memory = False
