"""Deformable convolution on the CPU against torchvision's operator."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops import deform_conv2d

from onenet.ops.deform import DeformConv, allow_tf32

close = torch.testing.assert_close


def inputs(size=(5, 7), batch=2):
    """Maps, offsets and a mask; some taps are on whole pixels, on borders and far outside."""
    generator = torch.Generator().manual_seed(0)
    height, width = size
    like = {"dtype": torch.float64, "generator": generator}
    x = torch.randn(batch, 8, height, width, **like)
    offset = 3 * torch.randn(batch, 18, height, width, **like)
    for column, value in enumerate((0.0, 1.0, -1.0, 1e30, -1e30, 0.5)):
        offset[..., column] = value
    mask = torch.rand(batch, 9, height, width, **like)
    return x, offset, mask


def layer(dtype=torch.float64) -> DeformConv:
    torch.manual_seed(0)
    return DeformConv(8, 6).to(dtype)


@pytest.mark.parametrize("modulated", [True, False])
@pytest.mark.parametrize("size", [(5, 7), (1, 6), (12, 8)])
def test_values_are_those_of_the_operator(size, modulated):
    dcn = layer()
    x, offset, mask = inputs(size=size)
    mask = mask if modulated else None
    expected = deform_conv2d(x, offset, dcn.weight, padding=1, mask=mask)
    close(dcn(x, offset, mask), expected, rtol=1e-12, atol=1e-12)
    dcn.to(memory_format=torch.channels_last)
    x = x.to(memory_format=torch.channels_last)
    found = dcn(x, offset, mask)
    close(found, expected, rtol=1e-12, atol=1e-12)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_float32_is_exact_to_rounding():
    dcn = layer(torch.float32)
    found = dcn(*(v.float() for v in inputs()))
    close(found.double(), dcn.double()(*inputs()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("modulated", [True, False])
def test_gradients_are_those_of_the_operator(modulated):
    dcn = layer()
    # Between pixels, since on one the derivative by the place is any of two.
    x, offset, mask = (v.requires_grad_() for v in inputs(size=(6, 7)))
    offset.data[..., :6] = 0.3
    arguments = [x, offset, mask] if modulated else [x, offset]
    out = dcn(x, offset, mask if modulated else None)
    expected = deform_conv2d(x, offset, dcn.weight, padding=1, mask=mask if modulated else None)
    weights = torch.randn_like(out)
    found = torch.autograd.grad((out * weights).sum(), [*arguments, dcn.weight])
    expected = torch.autograd.grad((expected * weights).sum(), [*arguments, dcn.weight])
    for a, b in zip(found, expected, strict=True):
        close(a, b, rtol=1e-10, atol=1e-10)


def test_a_bias_is_added():
    dcn = layer()
    plain = dcn(*inputs())
    dcn.bias = torch.nn.Parameter(torch.arange(6.0, dtype=torch.float64))
    close(dcn(*inputs()), plain + dcn.bias[:, None, None])


def test_half_precision_samples_in_float32():
    """Offsets of a thousandth of a pixel count, though bfloat16 does not tell 64.001 from 64."""
    dcn = layer(torch.float32)
    ramp = torch.arange(100.0).expand(1, 8, 3, 100) * 1000
    offset = torch.full((1, 18, 3, 100), 0.001)
    with torch.no_grad():
        dcn.weight.zero_()[0, 0, 1, 1] = 1
        centre = dcn(ramp, offset, None)[0, 0, 1, 64]
    assert centre.item() == pytest.approx(64001, abs=0.1)


def test_bfloat16_in_bfloat16_out():
    x, offset, mask = (v.float() for v in inputs())
    expected = layer(torch.float32)(x, offset, mask)
    found = layer(torch.bfloat16)(x.bfloat16(), offset, mask)
    assert found.dtype == torch.bfloat16
    close(found.float(), expected, rtol=0.05, atol=0.05)


def test_an_export_holds_the_operator():
    graph = torch.export.export(layer(), inputs()).graph
    assert torch.ops.torchvision.deform_conv2d.default in {node.target for node in graph.nodes}


@pytest.mark.parametrize(("device", "expected"), [("cuda:1", ["high"]), ("cpu", [])])
def test_tf32_is_cudas(monkeypatch, device, expected):
    given = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", given.append)
    allow_tf32(torch.device(device))
    assert given == expected
