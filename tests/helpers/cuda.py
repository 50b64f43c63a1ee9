"""The device of the tests that need a card, and what makes it exact."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields

import pytest
import torch

from onenet import Predictions

# ONENET_TEST_DEVICE=cpu rehearses these tests on a machine without a card.
DEVICE = torch.device(os.environ.get("ONENET_TEST_DEVICE", "cuda"))
ON_CARD = DEVICE.type == "cuda"
# Where kernels run: on a card, or on the CPU by Triton's interpreter.
HERE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
needs_card = pytest.mark.skipif(ON_CARD and not torch.cuda.is_available(), reason="needs CUDA")


@contextmanager
def exact() -> Iterator[None]:
    """Without TF32, which rounds to 10 bits."""
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


@contextmanager
def never_waiting() -> Iterator[None]:
    """An error for anything that makes the host wait for the card."""
    if not ON_CARD:
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def on_card(predictions: Predictions) -> Predictions:
    """The same predictions, detached, on the device."""
    tensors = (getattr(predictions, field.name) for field in fields(predictions))
    return Predictions(*(tensor.detach().to(DEVICE) for tensor in tensors))
