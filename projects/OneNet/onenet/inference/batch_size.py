"""How many images go through the network together at inference."""

from __future__ import annotations

from typing import Any

import torch


def images_per_batch(cfg: Any) -> int:
    """``TEST.IMS_PER_BATCH``, or what its 0 stands for on the device that is used."""
    on_cuda = torch.cuda.is_available() and cfg.MODEL.DEVICE.startswith("cuda")
    return cfg.TEST.IMS_PER_BATCH or (8 if on_cuda else 1)
