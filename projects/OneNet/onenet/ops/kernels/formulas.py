"""Formulas that the kernels share: what they compute is plain in class_losses.py and boxes.py."""

from __future__ import annotations

import triton
import triton.language as tl

# A target's best sample, packed so that the smallest number is the first cheapest: the cost above,
# the sample below.
SAMPLE_BITS = tl.constexpr(32)
SAMPLE_MASK = tl.constexpr(2**32 - 1)
NO_SAMPLE = 2**63 - 1
NONE_PACKED = tl.constexpr(NO_SAMPLE)
MIN_AREA = tl.constexpr(1e-7)  # of onenet.ops.boxes
_LOG2_E = tl.constexpr(1.4426950408889634)
_LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def exp(x, FAST: tl.constexpr):
    if FAST:
        y = tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;",
            "=f,f",
            [x * _LOG2_E],
            dtype=tl.float32,
            is_pure=True,
            pack=1,
        )
    else:
        y = tl.exp(x)
    return y


@triton.jit
def log(x, FAST: tl.constexpr):
    if FAST:
        y = _LN2 * tl.inline_asm_elementwise(
            "lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        y = tl.log(x)
    return y


@triton.jit
def one_over(x, FAST: tl.constexpr):
    if FAST:
        y = tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        y = 1.0 / x
    return y


@triton.jit
def power(p, GAMMA: tl.constexpr):
    if GAMMA == 2.0:
        result = p * p
    elif GAMMA == 1.0:
        result = p
    elif GAMMA == 0.0:
        result = p * 0.0 + 1.0
    else:
        result = tl.exp2(GAMMA * tl.log2(p))
    return result


@triton.jit
def as_negative(x, weight, GAMMA: tl.constexpr, FAST: tl.constexpr):
    """Focal loss of logits taken as negatives, and its derivative; see focal.py."""
    e = exp(-tl.abs(x), FAST)
    # One division for 1 / (1 + e) and e / (2 + e).
    share = one_over((1.0 + e) * (2.0 + e), FAST)
    r = share * (2.0 + e)
    t = share * (1.0 + e) * e
    p = tl.where(x >= 0, r, e * r)
    q = tl.where(x >= 0, e * r, r)
    # log(1 + e) = 2 artanh(t), from 0 to log 2, with a relative error of 3e-9 by its polynomial.
    z = t * t
    log1p = 0.279614188 + z * 0.281746573
    log1p = 0.666663159 + z * (0.400248537 + z * log1p)
    log1p = t * (2.000000008 + z * log1p)
    softplus = tl.maximum(x, 0.0) + log1p
    factor = power(p, GAMMA) * weight
    return factor * softplus, factor * (p + GAMMA * q * softplus)


@triton.jit
def first_target(counts, counts_stride, image, images, IMAGES: tl.constexpr):
    """Where the targets of an image begin and end."""
    number = tl.arange(0, IMAGES)
    count = tl.load(counts + number * counts_stride, mask=number < images, other=0)
    begin = tl.sum(tl.where(number < image, count, 0), axis=0)
    return begin, begin + tl.sum(tl.where(number == image, count, 0), axis=0)


@triton.jit
def giou_parts(px1, py1, px2, py2, tx1, ty1, tx2, ty2):
    """Overlap, union, hull and the sides that their gradients need."""
    width = tl.minimum(px2, tx2) - tl.maximum(px1, tx1)
    height = tl.minimum(py2, ty2) - tl.maximum(py1, ty1)
    overlap = tl.maximum(width, 0.0) * tl.maximum(height, 0.0)
    union = (px2 - px1) * (py2 - py1) + (tx2 - tx1) * (ty2 - ty1) - overlap
    hull_w = tl.maximum(px2, tx2) - tl.minimum(px1, tx1)
    hull_h = tl.maximum(py2, ty2) - tl.minimum(py1, ty1)
    hull = hull_w * hull_h
    return overlap, union, hull, width, height, hull_w, hull_h


@triton.jit
def giou_value(px1, py1, px2, py2, tx1, ty1, tx2, ty2, FAST: tl.constexpr):
    overlap, union, hull, width, height, hull_w, hull_h = giou_parts(
        px1, py1, px2, py2, tx1, ty1, tx2, ty2
    )
    share = overlap * one_over(tl.maximum(union, MIN_AREA), FAST)
    return share - (hull - union) * one_over(tl.maximum(hull, MIN_AREA), FAST)


@triton.jit
def corners(boxes, row, mask):
    x1 = tl.load(boxes + row * 4, mask=mask, other=0.0)
    y1 = tl.load(boxes + row * 4 + 1, mask=mask, other=0.0)
    x2 = tl.load(boxes + row * 4 + 2, mask=mask, other=0.0)
    y2 = tl.load(boxes + row * 4 + 3, mask=mask, other=0.0)
    return x1, y1, x2, y2
