"""How feature maps lie in memory."""

from __future__ import annotations

import torch


def memory_format(device: torch.device) -> torch.memory_format:
    """``channels_last`` on CUDA, and under autocast on any device; for training.

    Not in float32 on the CPU: there torch's batch norm is a hundred times less exact with it in
    training, which untrained deep networks turn into percents of the gradient. bfloat16 rounds by
    more than that in any format.
    """
    last = device.type == "cuda" or torch.is_autocast_enabled(device.type)
    return torch.channels_last if last else torch.contiguous_format
