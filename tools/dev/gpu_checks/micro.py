"""Operators by themselves: deformable convolutions, convolution with its ReLU, the top-k."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import deform_conv2d

from onenet.inference.postprocess import top_k
from onenet.ops.deform import DeformConv, corners

from .check import Check


@torch.inference_mode()
def run(check: Check) -> None:
    for name, variants in (
        *_deformable(check),
        ("convolution, bias, ReLU: 64 channels", _convolutions(check)),
        ("best 100", _top_k(check)),
    ):
        for variant, work in variants.items():
            if check.left < 1:
                return
            with check.going_on(operator=name, variant=variant):
                check.record(operator=name, variant=variant, ms=check.ms(work))


def _deformable(check: Check) -> list[tuple[str, dict[str, Callable[[], Any]]]]:
    """The neck's three layers of ResNet-50, as (channels in, out, stride)."""
    batch = 2 if check.quick else 8
    found = []
    for c_in, c_out, stride in ((2048, 256, 32), (256, 128, 16), (128, 64, 8)):
        height, width = check.size[0] // stride, check.size[1] // stride
        place = {"device": check.device}
        x = torch.randn(batch, c_in, height, width, **place)
        x = x.contiguous(memory_format=torch.channels_last)
        offset = torch.randn(batch, 18, height, width, **place)
        mask = torch.rand(batch, 9, height, width, **place)
        layer = DeformConv(c_in, c_out).to(check.device)
        name = f"DCN {c_in} to {c_out} at {height} x {width}, batch {batch}"
        found.append((name, _variants(layer, x, offset, mask)))
    return found


def _variants(
    layer: DeformConv, x: Tensor, offset: Tensor, mask: Tensor
) -> dict[str, Callable[[], Any]]:
    def operator(dtype: torch.dtype, precision: str = "highest") -> Tensor:
        torch.set_float32_matmul_precision(precision)
        given = (t.to(dtype) for t in (x, offset, layer.weight))
        try:
            return deform_conv2d(*given, padding=1, mask=mask.to(dtype))
        finally:
            torch.set_float32_matmul_precision("highest")

    def gathering(dtype: torch.dtype) -> Tensor:
        rows, shares = corners(offset, mask)
        pixels = x.to(dtype).permute(0, 2, 3, 1).reshape(-1, x.shape[1])
        taps = F.embedding_bag(rows, pixels, mode="sum", per_sample_weights=shares.to(dtype))
        weight = layer.weight.to(dtype).permute(0, 2, 3, 1).flatten(1)
        return F.linear(taps.view(-1, weight.shape[1]), weight)

    return {
        "torchvision, float32": lambda: operator(torch.float32),
        "torchvision, TF32": lambda: operator(torch.float32, "high"),
        "torchvision, float16": lambda: operator(torch.float16),
        "gathering, float32": lambda: gathering(torch.float32),
        "gathering, bfloat16": lambda: gathering(torch.bfloat16),
    }


def _convolutions(check: Check) -> dict[str, Callable[[], Any]]:
    height, width = (side // 4 for side in check.size)
    x = torch.randn(8, 64, height, width, device=check.device).bfloat16()
    weight = torch.randn(64, 64, 3, 3, device=check.device).bfloat16()
    bias = torch.randn(64, device=check.device).bfloat16()
    x, weight = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))
    other = torch.randn_like(x)
    ones = [1, 1]
    return {
        "three kernels": lambda: F.conv2d(x, weight, bias, padding=1).relu_(),
        "one kernel": lambda: torch.cudnn_convolution_relu(x, weight, bias, ones, ones, ones, 1),
        "with an addition": lambda: F.conv2d(x, weight, bias, padding=1).add_(other).relu_(),
        "with it, one kernel": lambda: torch.cudnn_convolution_add_relu(
            x, weight, other, 1.0, bias, ones, ones, ones, 1
        ),
    }


def _top_k(check: Check) -> dict[str, Callable[[], Any]]:
    samples = check.size[0] * check.size[1] // 16
    logits = torch.randn(8, samples, 80, device=check.device).bfloat16()
    return {
        "two stages": lambda: top_k(logits, 100),
        "of all pairs": lambda: logits.flatten(1).topk(100),
    }
