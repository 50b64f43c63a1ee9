"""The device that a config asks for: whether it is there, deterministic, and fast."""

from __future__ import annotations

import logging
import os
import platform
import subprocess
import sys
from functools import cache
from typing import Any

import torch
import torch.distributed as dist

from onenet.errors import ConfigError

from .machine import cpu_flags

logger = logging.getLogger(__name__)
# What MODEL.DEVICE may be; with Detectron2, whatever else torch knows, too.
DEVICES = "'cpu', 'cuda', 'cuda:N' or 'mps'"
FALLBACK = "PYTORCH_ENABLE_MPS_FALLBACK"  # onenet/__init__.py sets it


def choose_device(cfg: Any) -> torch.device:
    """``MODEL.DEVICE``, or the CPU, with a line in the log, if that is CUDA or MPS and not there.

    Raises:
        ConfigError: no such device, or a number that no device of this machine has.
    """
    device = device_of(cfg)
    wanted = torch.device(cfg.MODEL.DEVICE).type
    if device.type != wanted:
        logger.info(
            "MODEL.DEVICE is %s, but there is no %s: running on the CPU%s",
            cfg.MODEL.DEVICE,
            wanted.upper(),
            "; MODEL.DEVICE mps takes the Mac's GPU" if _has_mps() else "",
        )
    elif device.type == "mps":
        falls_back = os.environ.get(FALLBACK) == "1"
        then = "run on the CPU, and torch names each" if falls_back else "end the program"
        logger.info("Operators that MPS lacks %s (%s=1 decides)", then, FALLBACK)
    return device


def device_of(cfg: Any) -> torch.device:
    """The device of :func:`choose_device`, without the line in the log; raises what that raises."""
    try:
        device = torch.device(cfg.MODEL.DEVICE)
    except RuntimeError:
        raise ConfigError(f"MODEL.DEVICE is {cfg.MODEL.DEVICE!r}; expected {DEVICES}") from None
    checks = {"cuda": torch.cuda.is_available, "mps": _has_mps}
    if device.type in checks and not checks[device.type]():
        return torch.device("cpu")
    if device.type == "cuda":
        _check_number(cfg, device)
    return device


def _check_number(cfg: Any, device: torch.device) -> None:
    count = torch.cuda.device_count()
    if device.index is not None and device.index >= count:
        numbers = "0" if count == 1 else f"0 to {count - 1}"
        raise ConfigError(
            f"MODEL.DEVICE is {cfg.MODEL.DEVICE!r}, but this machine has {count} CUDA device(s): "
            f"N must be {numbers}"
        )


def _has_mps() -> bool:
    return torch.backends.mps.is_available()


def warn_of_bfloat16(device: torch.device, change: str) -> None:
    """Warn, once and in the first process, that bfloat16 is slow on a CPU without units for it.

    Args:
        device: that computes.
        change: the key with the value that is faster, such as "TEST.PRECISION float32".
    """
    others = dist.is_available() and dist.is_initialized() and dist.get_rank() > 0
    if device.type == "cpu" and not others and has_bfloat16() is False:
        _warn_of_bfloat16(change)


@cache
def _warn_of_bfloat16(change: str) -> None:
    logger.warning(
        "This processor has no bfloat16 units (avx512_bf16, amx_bf16 or ARM's bf16), and bfloat16 "
        "may take over ten times as long as float32: %s is faster here",
        change,
    )


def has_bfloat16() -> bool | None:
    """Whether the processor has instructions for bfloat16; ``None``: the system does not say."""
    if sys.platform == "darwin":
        if platform.machine() != "arm64":
            return False  # Intel's processors with such instructions came after Apple's last Mac
        asked = ["sysctl", "-n", "hw.optional.arm.FEAT_BF16"]
        answer = subprocess.run(asked, capture_output=True, text=True).stdout.strip()
        return answer == "1" if answer else None
    flags = cpu_flags()
    # x86's two, and ARM's
    return None if flags is None else not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags)


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
