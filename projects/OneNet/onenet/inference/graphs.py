"""Inference as CUDA graphs, without compilation: the host launches one graph instead of kernels."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Find = Callable[..., Sequence[Tensor]]
# Sizes whose graphs are kept; the one that was used least recently goes first.
MAX_SIZES = 64
# Runs before a capture, in which cuDNN and Triton choose their kernels.
_WARM_UP = 3


@dataclass(frozen=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    inputs: Sequence[Tensor]
    found: Sequence[Tensor]


class GraphForEachSize:
    """A function of a batch, captured as a CUDA graph for every size of a batch that it meets.

    Capturing takes a fraction of a second, a few times that of an ordinary call. The graphs share
    their memory, since their results are copied out of it after every replay.

    Args:
        find: from tensors on CUDA, a batch (B, 3, H, W) first, to tensors; without a wait for the
            device.
    """

    def __init__(self, find: Find) -> None:
        self.find = find
        self._captured: OrderedDict[tuple[object, ...], _Captured] = OrderedDict()
        self._pool: tuple[int, int] | None = None

    @torch.no_grad()
    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """What the function finds, in memory of its own."""
        size = tuple((given.shape, given.dtype, given.stride()) for given in inputs)
        if size not in self._captured:
            while len(self._captured) >= MAX_SIZES:
                self._captured.popitem(last=False)
            self._captured[size] = self._capture(*inputs)
        self._captured.move_to_end(size)
        captured = self._captured[size]
        for own, given in zip(captured.inputs, inputs, strict=True):
            own.copy_(given)
        captured.graph.replay()
        return [tensor.clone() for tensor in captured.found]

    # A tensor of inference mode could not be overwritten outside it.
    @torch.inference_mode(False)
    @torch.no_grad()
    def _capture(self, *inputs: Tensor) -> _Captured:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        own = [torch.empty_like(given).copy_(given) for given in inputs]
        with torch.cuda.device_of(own[0]):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UP):
                    self.find(*own)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                found = self.find(*own)
        return _Captured(graph, own, found)
