"""Grids of samples, box coders, and a GIoU that broadcasts and is never NaN.

Boxes are xyxy in pixels of the input image, float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# Limits a box to 1000/16 times the size of its anchor, as Detectron2 does.
MAX_LOG_SIZE = math.log(1000.0 / 16)
# GIoU divides by at least this area (px²): boxes without area give no NaN or infinite gradient.
MIN_AREA = 1e-7


def point_grid(height: int, width: int, stride: int, device: torch.device | None = None) -> Tensor:
    """Grid points of one feature map: ``stride * i + stride // 2``, row by row.

    Returns:
        (height * width, 2) float32, (x, y) in px.
    """
    # Integers first: TensorRT has no float range whose end depends on the image.
    x = torch.arange(width, device=device).float() * stride + stride // 2
    y = torch.arange(height, device=device).float() * stride + stride // 2
    yy, xx = torch.meshgrid(y, x, indexing="ij")
    return torch.stack((xx, yy), dim=-1).reshape(-1, 2)


def cell_anchors(sizes: Sequence[float], aspect_ratios: Sequence[float]) -> Tensor:
    """Anchors of one grid cell, centred on (0, 0); sizes in the outer loop, ratios in the inner.

    Args:
        sizes: square roots of the anchors' areas, px.
        aspect_ratios: height / width.

    Returns:
        (len(sizes) * len(aspect_ratios), 4) float32 xyxy px.
    """
    anchors = []
    for size in sizes:
        for ratio in aspect_ratios:
            width = math.sqrt(size**2 / ratio)
            height = ratio * width
            anchors.append((-width / 2, -height / 2, width / 2, height / 2))
    return torch.tensor(anchors, dtype=torch.float32)


def anchor_grid(cell: Tensor, height: int, width: int, stride: int, offset: float = 0.0) -> Tensor:
    """Anchors of one feature map, ordered by row, column and the cell's A anchors.

    Args:
        cell: (A, 4) xyxy px around (0, 0).
        offset: centre of the first cell, in strides.

    Returns:
        (height * width * A, 4) xyxy px.
    """
    x = (torch.arange(width, device=cell.device).float() + offset) * stride
    y = (torch.arange(height, device=cell.device).float() + offset) * stride
    yy, xx = torch.meshgrid(y, x, indexing="ij")
    shifts = torch.stack((xx, yy, xx, yy), dim=-1).reshape(-1, 1, 4)
    return (shifts + cell).reshape(-1, 4)


def decode_ltrb(points: Tensor, distances: Tensor) -> Tensor:
    """Boxes from the distances of a point to the left, top, right and bottom side.

    Args:
        points: (..., 2) px.
        distances: (..., 4) px.

    Returns:
        (..., 4) xyxy px.
    """
    return torch.cat((points - distances[..., :2], points + distances[..., 2:]), dim=-1)


def encode_ltrb(points: Tensor, boxes: Tensor) -> Tensor:
    """Inverse of :func:`decode_ltrb`; negative where the point lies outside the box."""
    return torch.cat((points - boxes[..., :2], boxes[..., 2:] - points), dim=-1)


def decode_deltas(anchors: Tensor, deltas: Tensor, max_log_size: float = MAX_LOG_SIZE) -> Tensor:
    """Boxes from anchors and Faster R-CNN's (dx, dy, dw, dh), all of weight 1.

    Args:
        anchors: (..., 4) xyxy px.
        deltas: (..., 4); the log-sizes are clamped from above at ``max_log_size``.

    Returns:
        (..., 4) xyxy px.
    """
    sizes = anchors[..., 2:] - anchors[..., :2]
    centres = anchors[..., :2] + 0.5 * sizes
    new_centres = deltas[..., :2] * sizes + centres
    new_sizes = deltas[..., 2:].clamp(max=max_log_size).exp() * sizes
    return torch.cat((new_centres - 0.5 * new_sizes, new_centres + 0.5 * new_sizes), dim=-1)


def encode_deltas(anchors: Tensor, boxes: Tensor) -> Tensor:
    """Inverse of :func:`decode_deltas` for boxes and anchors of positive size."""
    anchor_sizes = anchors[..., 2:] - anchors[..., :2]
    sizes = boxes[..., 2:] - boxes[..., :2]
    shift = (boxes[..., :2] + 0.5 * sizes) - (anchors[..., :2] + 0.5 * anchor_sizes)
    return torch.cat((shift / anchor_sizes, (sizes / anchor_sizes).log()), dim=-1)


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU (arXiv 1902.09630) of boxes that broadcast against each other.

    ``giou(a[:, None], b[None])`` is the (N, M) matrix of all pairs, ``giou(a, b)`` the values of
    corresponding pairs. Boxes without area are allowed: two of them at one place give 0, not NaN.

    Args:
        a, b: (..., 4) xyxy.

    Returns:
        (...) in [-1, 1].
    """
    overlap, union = _overlap_and_union(a, b)
    hull_w = torch.maximum(a[..., 2], b[..., 2]) - torch.minimum(a[..., 0], b[..., 0])
    hull_h = torch.maximum(a[..., 3], b[..., 3]) - torch.minimum(a[..., 1], b[..., 1])
    hull = hull_w * hull_h
    return overlap / union.clamp(min=MIN_AREA) - (hull - union) / hull.clamp(min=MIN_AREA)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes that broadcast like those of :func:`giou`; (...) in [0, 1].

    Two boxes without area at one place give 0.
    """
    overlap, union = _overlap_and_union(a, b)
    return overlap / union.clamp(min=MIN_AREA)


def _overlap_and_union(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Their areas, (...) px²."""
    area_a = (a[..., 2] - a[..., 0]) * (a[..., 3] - a[..., 1])
    area_b = (b[..., 2] - b[..., 0]) * (b[..., 3] - b[..., 1])
    overlap_w = torch.minimum(a[..., 2], b[..., 2]) - torch.maximum(a[..., 0], b[..., 0])
    overlap_h = torch.minimum(a[..., 3], b[..., 3]) - torch.maximum(a[..., 1], b[..., 1])
    overlap = overlap_w.clamp(min=0) * overlap_h.clamp(min=0)
    return overlap, area_a + area_b - overlap


def by_coordinate(boxes: Tensor) -> Tensor:
    """The same (..., 4) boxes, laid out so that each coordinate is contiguous in memory."""
    return boxes.movedim(-1, 0).contiguous().movedim(0, -1)
