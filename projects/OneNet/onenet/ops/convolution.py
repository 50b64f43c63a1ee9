"""A convolution with what follows it: in one kernel of cuDNN where a model is prepared for it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_ONE_KERNEL = "relu_in_one_kernel"


def conv_relu(conv: nn.Module, x: Tensor, plus: Tensor | None = None) -> Tensor:
    """ReLU of a convolution, of its sum with another map if there is one.

    Args:
        conv: the layer, or a block that ends in a convolution or in its normalisation.
        plus: (B, C, H, W) like the result.
    """
    if not getattr(conv, _ONE_KERNEL, False):
        # In place, since nothing else reads it: large maps cost as much as their arithmetic.
        out = conv(x)
        if plus is not None:
            out += plus
        return F.relu_(out)
    where = (conv.stride, conv.padding, conv.dilation, conv.groups)
    x = x.to(conv.weight.dtype)
    if plus is None:
        return torch.cudnn_convolution_relu(x, conv.weight, conv.bias, *where)
    return torch.cudnn_convolution_add_relu(x, conv.weight, plus, 1.0, conv.bias, *where)


def use_one_kernel(model: nn.Module, allowed: bool = True) -> None:
    """Let :func:`conv_relu` call cuDNN's kernels, in place and for inference on CUDA only.

    For convolutions in half precision with a bias, behind which no normalisation is left.

    Args:
        allowed: ``False`` goes back to one kernel for each operation.
    """
    for layer in model.modules():
        # Other subclasses may compute more than a convolution.
        if type(layer) is nn.Conv2d or (isinstance(layer, nn.Conv2d) and hasattr(layer, "norm")):
            plain = isinstance(getattr(layer, "norm", None), nn.Identity | None)
            half = layer.weight.dtype in (torch.bfloat16, torch.float16)
            there = layer.bias is not None and not isinstance(layer.padding, str)
            setattr(layer, _ONE_KERNEL, allowed and plain and half and there)
