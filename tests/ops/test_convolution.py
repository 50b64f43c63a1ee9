"""Convolutions with what follows them: the same values by cuDNN's kernels as by torch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers.fake_cuda import patch_cudnn
from torch import Tensor, nn

from onenet.backbones.resnet import ResNet
from onenet.heads.deconv import PairConv
from onenet.inference.fuse import fold_batch_norms
from onenet.ops.convolution import conv_relu, use_one_kernel


def image(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_the_formula():
    conv, x, plus = nn.Conv2d(3, 4, 3, padding=1), image(2, 3, 8, 9), image(2, 4, 8, 9)
    kept = plus.clone()
    torch.testing.assert_close(conv_relu(conv, x), conv(x).relu())
    torch.testing.assert_close(conv_relu(conv, x, plus=plus), (conv(x) + plus).relu())
    assert torch.equal(plus, kept)  # a shortcut, which others read


@pytest.mark.parametrize("depth", [18, 50])
def test_a_prepared_backbone_calls_the_kernels_with_the_right_arguments(monkeypatch, depth):
    """Strides, padding and the shortcuts' places."""
    torch.manual_seed(0)
    model = ResNet(depth=depth).eval()
    fold_batch_norms(model)
    model.to(torch.bfloat16)
    x, calls = image(1, 3, 64, 96), []
    with torch.no_grad():
        expected = model(x.bfloat16())
        use_one_kernel(model)
        patch_cudnn(monkeypatch)
        for name in ("cudnn_convolution_relu", "cudnn_convolution_add_relu"):
            one = getattr(torch, name)

            def counted(*args, one=one, name=name):
                calls.append(name)
                return one(*args)

            monkeypatch.setattr(torch, name, counted)
        found = model(x)
        use_one_kernel(model, allowed=False)
        count = len(calls)
        model(x.bfloat16())
    blocks = {18: 8, 50: 16}[depth]
    assert calls.count("cudnn_convolution_add_relu") == blocks
    assert count - blocks == 1 + blocks * (1 if depth == 18 else 2)  # with the stem
    assert len(calls) == count
    for name, maps in found.items():
        # The sum is rounded once and not twice.
        torch.testing.assert_close(maps, expected[name], rtol=0.1, atol=0.1)


def test_only_what_the_kernels_compute_is_left_to_them(monkeypatch):
    def refuse(*_: object) -> None:
        raise AssertionError("cuDNN's kernel was called")

    monkeypatch.setattr(torch, "cudnn_convolution_relu", refuse)
    pair = PairConv(4).bfloat16()
    single = nn.Conv2d(4, 4, 1)
    biasless = nn.Conv2d(4, 4, 1, bias=False).bfloat16()
    normalised = nn.Conv2d(4, 4, 1).bfloat16()
    normalised.norm = nn.BatchNorm2d(4).bfloat16()
    for layer in (pair, single, biasless, normalised):
        use_one_kernel(layer)
        x = image(2, 4, 5, 5).to(layer.weight.dtype)
        assert torch.equal(conv_relu(layer, x), F.relu(layer(x)))
