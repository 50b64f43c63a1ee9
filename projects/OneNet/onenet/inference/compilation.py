"""``torch.compile`` for inference on few sizes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

MAX_SIZES = 256


def allow_many_sizes() -> None:
    """Let this process compile ``MAX_SIZES`` sizes.

    torch's own limit of 8 is one for all models together. Batches of sizes beyond it run
    uncompiled, with a warning of torch's.
    """
    from torch._dynamo import config  # which takes a second

    config.cache_size_limit = max(config.cache_size_limit, MAX_SIZES)
    config.accumulated_cache_size_limit = max(config.accumulated_cache_size_limit, MAX_SIZES)


def compile_for_each_size(
    find: Callable[[Tensor], tuple[Tensor, ...]], device: torch.device
) -> Callable[[Tensor], list[Tensor]]:
    """Compile a function for every size of a batch that it meets, as CUDA graphs on CUDA."""
    allow_many_sizes()
    mode = "reduce-overhead" if device.type == "cuda" else None
    run = torch.compile(find, dynamic=False, mode=mode)

    def copy(batch: Tensor) -> list[Tensor]:
        # A CUDA graph writes where it wrote before.
        return [tensor.clone() for tensor in run(batch)]

    return copy
