"""CUDA without a card: tensors on "cuda" that have shapes and dtypes, but no values."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode

PACKAGE = str(Path("onenet"))
# What a fake tensor cannot answer: the value itself, or a shape that depends on it.
UNKNOWN = (DataDependentOutputException, DynamicOutputShapeException)
_INDEXED = ("index", "index_put", "index_put_", "_unsafe_index", "_unsafe_index_put")
_READ = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique_dim")


class Waits(TorchDispatchMode):
    """Notes each operator for which the host waits for the card.

    Not under ``inference_mode``, which shows other operators: use ``no_grad``.

    Attributes:
        found: "operator in function of file" of each, in order; the function is the innermost of
            the package.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None) -> Any:
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__
        if _waits(name, args, kwargs):
            self.found.append(f"{name} in {_place()}")
        return function(*args, **kwargs)


def _waits(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    if name in _READ:
        return _on_cuda(args[0])
    if name in _INDEXED:
        indices = [index for index in args[1] if index is not None]
        # A mask is counted, and an index on the CPU is copied first.
        return _on_cuda(args[0]) and any(i.dtype == torch.bool or not _on_cuda(i) for i in indices)
    if name == "repeat_interleave":
        return _on_cuda(args[0]) and kwargs.get("output_size") is None
    if name == "_to_copy":
        device = kwargs.get("device") or args[0].device
        return _blocks(args[0].device, device, kwargs.get("non_blocking", False))
    if name == "copy_":
        later = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
        return _blocks(args[1].device, args[0].device, later)
    return False


def _on_cuda(tensor: Any) -> bool:
    return isinstance(tensor, Tensor) and tensor.device.type == "cuda"


def _blocks(source: torch.device, target: torch.device, later: bool) -> bool:
    # What arrives later on the CPU would be read too early.
    return source.type != target.type and not (later and target.type == "cuda")


def _place() -> str:
    frame = sys._getframe(2)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if PACKAGE in path.parts:
            return f"{frame.f_code.co_name} of {path.parent.name}/{path.name}"
        frame = frame.f_back
    return "torch"


def _apply(self: nn.Module, function: Any, recurse: bool = True) -> nn.Module:
    """``nn.Module.to`` in a few words: torch's own swaps tensors, which fake ones do not allow."""
    for module in self.modules() if recurse else (self,):
        for name, value in module._parameters.items():
            if value is not None:
                with torch.no_grad():
                    moved = function(value)
                module._parameters[name] = nn.Parameter(moved, value.requires_grad)
        for name, value in module._buffers.items():
            if value is not None:
                module._buffers[name] = function(value)
    return self


def _copy(self: Tensor, memo: dict[int, Any]) -> Tensor:
    # torch's own copies the mode that makes tensors fake, which ends in a crash.
    with torch.no_grad():
        twin = self.clone()
    if isinstance(self, nn.Parameter):
        twin = nn.Parameter(twin, self.requires_grad)
    memo[id(self)] = twin
    return twin


def patch_cudnn(patch: pytest.MonkeyPatch) -> None:
    """Put torch's own operators in place of cuDNN's that do several things at once."""
    patch.setattr(torch, "cudnn_convolution_relu", lambda *args: F.conv2d(*args).relu())
    patch.setattr(
        torch,
        "cudnn_convolution_add_relu",
        lambda x, weight, z, alpha, *args: (F.conv2d(x, weight, *args) + alpha * z).relu(),
    )


@contextmanager
def fake_cuda() -> Iterator[None]:
    """Make "cuda" a device whose tensors cost nothing; nothing runs on them.

    All tensors made within are fake, those on the CPU too.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
        patch.setattr(Tensor, "pin_memory", lambda self, *_: self)
        patch_cudnn(patch)
        patch.setattr(nn.Module, "_apply", _apply)
        patch.setattr(FakeTensor, "__deepcopy__", _copy, raising=False)
        with FakeTensorMode(allow_non_fake_inputs=True):
            try:
                torch.zeros(1).to("cuda")
            except RuntimeError as error:  # torch 2.4, built for CUDA
                pytest.skip(f"this torch asks the driver for fake tensors, too: {error}"[:120])
            yield
