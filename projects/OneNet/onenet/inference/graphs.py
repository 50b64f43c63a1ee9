"""Inference as CUDA graphs, without compilation: the host launches one graph instead of kernels."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Find = Callable[[Tensor], Sequence[Tensor]]
# Sizes whose graphs are kept; the one that was used least recently goes first.
MAX_SIZES = 64
# Runs before a capture, in which cuDNN and Triton choose their kernels.
_WARM_UP = 3


@dataclass(frozen=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    batch: Tensor
    found: Sequence[Tensor]


class GraphForEachSize:
    """A function of a batch, captured as a CUDA graph for every size of a batch that it meets.

    Capturing takes a fraction of a second, a few times that of an ordinary call. The graphs share
    their memory, since their results are copied out of it after every replay.

    Args:
        find: from a batch (B, 3, H, W) on CUDA to tensors; without a wait for the device.
    """

    def __init__(self, find: Find) -> None:
        self.find = find
        self._captured: OrderedDict[tuple[object, ...], _Captured] = OrderedDict()
        self._pool: tuple[int, int] | None = None

    @torch.no_grad()
    def __call__(self, batch: Tensor) -> list[Tensor]:
        """What the function finds, in memory of its own."""
        size = (batch.shape, batch.dtype, batch.stride())
        if size not in self._captured:
            while len(self._captured) >= MAX_SIZES:
                self._captured.popitem(last=False)
            self._captured[size] = self._capture(batch)
        self._captured.move_to_end(size)
        captured = self._captured[size]
        captured.batch.copy_(batch)
        captured.graph.replay()
        return [tensor.clone() for tensor in captured.found]

    # A tensor of inference mode could not be overwritten outside it.
    @torch.inference_mode(False)
    @torch.no_grad()
    def _capture(self, batch: Tensor) -> _Captured:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        own = torch.empty_like(batch)
        own.copy_(batch)
        with torch.cuda.device_of(own):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UP):
                    self.find(own)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                found = self.find(own)
        return _Captured(graph, own, found)
