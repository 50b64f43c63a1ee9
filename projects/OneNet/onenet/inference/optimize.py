"""What makes a detector fast, for inference only: folding, precision, compilation."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from onenet.heads.base import BoxConv, BoxLinear
from onenet.ops.convolution import use_one_kernel
from onenet.ops.deform import DeformConv, allow_tf32
from onenet.structures import Predictions

from .fuse import fold_batch_norms
from .graphs import GraphForEachSize

logger = logging.getLogger(__name__)

# Values of TEST.PRECISION.
PRECISIONS = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
MAX_SIZES = 256


class Prepared:
    """Mixed into a detector's class by :func:`prepare`: it detects, but no longer trains.

    Attributes:
        precision: of convolutions and matrix products; ``None``: float32.
    """

    precision: torch.dtype | None = None

    def network(self, *inputs: Tensor) -> Predictions:
        """The model's own, in :attr:`precision`."""
        half = self.precision is not None
        with torch.autocast(inputs[0].device.type, self.precision) if half else nullcontext():
            return super().network(*inputs)

    def memory_format(self) -> torch.memory_format:
        """As the weights lie."""
        return torch.channels_last

    def train(self, mode: bool = True) -> Any:
        """Evaluation mode; ``RuntimeError`` if asked to train."""
        if mode:
            raise RuntimeError(
                "this model was prepared for inference and cannot train; load its checkpoint into "
                "a new one"
            )
        return super().train(mode)

    def state_dict(self, *args: Any, **keywords: Any) -> dict[str, Any]:
        """The state as a part of another module; ``RuntimeError`` if asked for a checkpoint's."""
        # Within another module, such as one to be exported, it is not taken for a checkpoint.
        if not keywords.get("prefix"):
            raise RuntimeError(
                "this model was prepared for inference; its weights are not those of a checkpoint, "
                "which must be loaded or saved before"
            )
        return super().state_dict(*args, **keywords)


def prepare(
    model: nn.Module,
    *,
    fuse: bool = True,
    precision: str = "float32",
    compile: bool = False,
    cuda_graphs: bool = False,
) -> nn.Module:
    """Make a detector on its device fast, in place and for inference only.

    A model that is fused or converted is :class:`Prepared` from then on: it neither trains nor
    gives a state dict, since its weights are no longer those of a checkpoint.

    Args:
        model: a :class:`~onenet.detector.DenseDetector`.
        fuse: fold batch norms into convolutions and lay maps out as ``channels_last``; the results
            are the same but for rounding. In half precision on CUDA, cuDNN also adds and activates
            in the kernel of a convolution.
        precision: of convolutions and matrix products: "float32", "bfloat16", or "float16" on
            CUDA only. Boxes and scores are float32 in any case. On CUDA, other than "float32" sets
            for this process what :func:`~onenet.ops.deform.allow_tf32` does.
        compile: with ``torch.compile``, as CUDA graphs on CUDA. Every size of a batch, its
            number of images included, is compiled when it is first met, which takes seconds
            to minutes: for images of one size or of a few.
        cuda_graphs: replay a CUDA graph for every size of a batch, without compiling it; see
            :class:`~onenet.inference.graphs.GraphForEachSize`.

    Returns:
        The model itself, in evaluation mode, without what only training needs.

    Raises:
        ValueError: an unknown precision, float16 on the CPU, or see :func:`check_graphs`.
    """
    device = model.pixel_mean.device
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if precision == "float16" and device.type == "cpu":
        raise ValueError("float16 is slower than float32 on the CPU; take bfloat16 there")
    if cuda_graphs:
        check_graphs(model, compile=compile)
    model.eval()
    model.drop_training_parts()
    if (fuse or precision != "float32") and not isinstance(model, Prepared):
        kind = type(model)
        model.__class__ = type(kind.__name__, (Prepared, kind), {"__doc__": kind.__doc__})
    if fuse:
        fold_batch_norms(model.requires_grad_(False))
        model.to(memory_format=torch.channels_last)
    if precision != "float32":
        allow_tf32(device)
        model.precision = PRECISIONS[precision]
        _convert_weights(model, model.precision)
    if fuse and device.type == "cuda" and not compile:  # which has fusions of its own
        use_one_kernel(model)
    if compile:
        model.find = compile_for_each_size(model.find, device)
    elif cuda_graphs:
        model.find = GraphForEachSize(model.find)
    logger.info(
        "Inference on %s: %s, %s%s",
        device,
        "batch norms folded, channels_last" if fuse else "as in training",
        precision,
        ", compiled for every size" if compile else ", CUDA graphs" if cuda_graphs else "",
    )
    return model


def check_graphs(model: nn.Module, *, compile: bool) -> None:
    """Raise ``ValueError`` unless a detector can run as CUDA graphs without being compiled."""
    device = model.pixel_mean.device
    if device.type != "cuda":
        raise ValueError(f"CUDA graphs need a model on CUDA, this one is on {device}")
    if compile:
        raise ValueError("a compiled model runs as CUDA graphs already; choose one of the two")
    if model.finding_waits:
        raise ValueError(
            f"{type(model).__name__} makes the host wait for the device while it detects, which no "
            "CUDA graph can hold"
        )


def is_plain(model: nn.Module) -> bool:
    """Whether a detector computes in float32 and uncompiled; it may be fused."""
    return getattr(model, "precision", None) is None and "find" not in vars(model)


@torch.no_grad()
def _convert_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Convert once what autocast would convert in every call."""
    for layer in model.modules():
        if isinstance(layer, BoxConv | BoxLinear):
            continue
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear | DeformConv):
            for parameter in layer.parameters(recurse=False):
                parameter.data = parameter.data.to(dtype)


def allow_many_sizes() -> None:
    """Let this process compile ``MAX_SIZES`` sizes.

    torch allows 8, for all models together. Batches of sizes beyond the limit run uncompiled, with
    a warning from torch.
    """
    from torch._dynamo import config  # takes a second

    config.cache_size_limit = max(config.cache_size_limit, MAX_SIZES)
    config.accumulated_cache_size_limit = max(config.accumulated_cache_size_limit, MAX_SIZES)


def compile_for_each_size(
    find: Callable[..., tuple[Tensor, ...]], device: torch.device
) -> Callable[..., list[Tensor]]:
    """Compile a function for every size of a batch that it meets, as CUDA graphs on CUDA."""
    allow_many_sizes()
    mode = "reduce-overhead" if device.type == "cuda" else None
    run = torch.compile(find, dynamic=False, mode=mode)

    def copy(*inputs: Tensor) -> list[Tensor]:
        if device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()  # no graph needs the last call's memory
        # A CUDA graph writes each result over the last one.
        return [tensor.clone() for tensor in run(*inputs)]

    return copy
