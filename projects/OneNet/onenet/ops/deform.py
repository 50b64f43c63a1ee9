"""Deformable convolution: torchvision's operator, and a faster form of it for the CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

# torch < 2.7 cannot tell an export from a compilation.
_is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)


def allow_tf32(device: torch.device) -> None:
    """If on CUDA, let this process multiply float32 matrices in TF32, with 10 bits of mantissa.

    For networks in bfloat16 or float16, whose deformable convolutions are the only ones that
    multiply in float32.
    """
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")


class DeformConv(nn.Module):
    """3×3 deformable convolution: v2 (arXiv 1811.11168) with a mask, v1 without.

    Interpolates in float32 at any precision of the network: offsets need it, and torchvision's
    operator has no bfloat16. Has no bias until :mod:`onenet.inference.fuse` folds a norm into it.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, 3, 3))
        self.register_parameter("bias", None)
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor | None) -> Tensor:
        """(B, C_out, H, W) from ``x`` (B, C_in, H, W), ``offset`` (B, 18, H, W) and ``mask``
        (B, 9, H, W)."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        x, offset = x.to(dtype), offset.to(dtype)
        mask = None if mask is None else mask.to(dtype)
        # Exported graphs keep the operator, which ONNX has.
        if x.device.type == "cpu" and not _is_exporting():
            return self._by_gathering(x, offset, mask)
        bias = None if self.bias is None else self.bias.to(dtype)
        return deform_conv2d(x, offset, self.weight.to(dtype), bias, padding=1, mask=mask)

    def _by_gathering(self, x: Tensor, offset: Tensor, mask: Tensor | None) -> Tensor:
        batch, channels, height, width = x.shape
        rows, shares = corners(offset, mask)
        pixels = x.permute(0, 2, 3, 1).reshape(-1, channels)
        if shares.requires_grad and not pixels.requires_grad:
            # torch 2.4 has no gradient of the weights alone.
            pixels = pixels.detach().requires_grad_()
        # Each tap is a weighted mean of four pixels, computed for all channels at once.
        taps = F.embedding_bag(rows, pixels, mode="sum", per_sample_weights=shares)
        weight = self.weight.permute(0, 2, 3, 1).flatten(1)
        taps = taps.to(weight.dtype).view(-1, weight.shape[1])
        out = F.linear(taps, weight, self.bias)
        return out.view(batch, height, width, -1).permute(0, 3, 1, 2)


def corners(offset: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The four pixels around each displaced tap of a 3×3 kernel, and their bilinear weights.

    Args:
        offset: (B, 18, H, W) px, (dy, dx) of the nine taps.
        mask: (B, 9, H, W) factors of the taps, or ``None``.

    Returns:
        Indices (B · H · W · 9, 4) int32 into the batch's pixels, row by row, and weights of that
        shape, 0 for pixels outside the map.
    """
    batch, _, height, width = offset.shape
    device = offset.device
    shift = offset.permute(0, 2, 3, 1).unflatten(3, (9, 2))
    tap = torch.arange(9, device=device)
    y = torch.arange(height, device=device)[:, None, None] + tap // 3 - 1
    x = torch.arange(width, device=device)[:, None] + tap % 3 - 1
    top, y_shares = _neighbours(shift[..., 0] + y, height)
    left, x_shares = _neighbours(shift[..., 1] + x, width)
    image = torch.arange(batch, device=device)[:, None, None, None, None, None]
    rows = (image * height + top[..., :, None]) * width + left[..., None, :]
    shares = y_shares[..., :, None] * x_shares[..., None, :]
    if mask is not None:
        shares = shares * mask.permute(0, 2, 3, 1)[..., None, None]
    return rows.to(torch.int32).view(-1, 4), shares.view(-1, 4)


def _neighbours(position: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The two cells around a position on an axis, and their weights, (..., 2) each."""
    # Nothing lies beyond -1 and ``size``; positions far outside would overflow an integer.
    position = position.clamp(-1, size)
    first = position.floor()
    share = position - first
    cells = torch.stack((first, first + 1), dim=-1).long()
    shares = torch.stack((1 - share, share), dim=-1) * ((cells >= 0) & (cells < size))
    return cells.clamp(0, size - 1), shares
