"""Errors for lack of memory, with the settings that need less of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from onenet.data.batching import DIVISIBILITY, pad_to
from onenet.errors import OneNetError, OutOfMemoryError
from onenet.inference.batch_size import images_per_batch

# How torch's CPU allocator, and CUDA's runtime and libraries say it in other errors: cuDNN finds no
# algorithm whose workspace fits, NCCL passes on what CUDA says.
_SIGNS = re.compile(
    "can't allocate memory|CUDA error: out of memory|_STATUS_ALLOC_FAILED"
    "|unable to find an engine|Cuda failure.*out of memory"
)


def training_advice(cfg: Any) -> str:
    """The settings of training that need less memory, with their values."""
    s, i = cfg.SOLVER, cfg.INPUT
    return (
        f"Needs less: a larger SOLVER.ACCUMULATE ({s.ACCUMULATE}) or smaller SOLVER.IMS_PER_BATCH "
        f"({s.IMS_PER_BATCH}); smaller INPUT.MAX_SIZE_TRAIN ({i.MAX_SIZE_TRAIN}) and "
        f"INPUT.MIN_SIZE_TRAIN ({', '.join(map(str, i.MIN_SIZE_TRAIN))}); SOLVER.AMP.ENABLED True "
        f"(is {s.AMP.ENABLED}). The last checkpoint is as it was: --resume goes on from it"
    )


def testing_advice(cfg: Any) -> str:
    """The settings of evaluation that need less memory, with their values."""
    t, i = cfg.TEST, cfg.INPUT
    return (
        f"Needs less: a smaller TEST.IMS_PER_BATCH ({images_per_batch(cfg)}); smaller "
        f"INPUT.MIN_SIZE_TEST ({i.MIN_SIZE_TEST}) and INPUT.MAX_SIZE_TEST ({i.MAX_SIZE_TEST}); "
        f"with --eval-only, TEST.PRECISION bfloat16 (is {t.PRECISION})"
    )


@contextmanager
def memory_errors(model: nn.Module, advice: Callable[[], str]) -> Iterator[None]:
    """Turn every error that means lack of memory into an ``OutOfMemoryError``.

    Args:
        model: its last images are counted and measured for the message; they are tensors
            (3, H, W), or dicts with one as ``image``.
        advice: returns the end of the message.
    """
    shapes: list[Sequence[int]] = []

    def note(_: nn.Module, args: tuple[Any, ...]) -> None:
        shapes[:] = [(x["image"] if isinstance(x, dict) else x).shape for x in args[0]]

    hook = model.register_forward_pre_hook(note)
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, OneNetError) or not _is_out_of_memory(error):
            raise
        images = ""
        if shapes:
            height, width = (
                pad_to(max(shape[dim] for shape in shapes), DIVISIBILITY) for dim in (1, 2)
            )
            images = f" with {len(shapes)} images of up to {height} x {width} px, padded,"
        reason = (str(error).splitlines() or ["MemoryError"])[0]
        raise OutOfMemoryError(
            f"out of memory{images} at a time on each process ({reason}). {advice()}"
        ) from error
    finally:
        hook.remove()


def _is_out_of_memory(error: Exception) -> bool:
    own = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return own or _SIGNS.search(str(error)) is not None
