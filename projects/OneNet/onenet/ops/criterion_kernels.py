"""Triton kernels of :mod:`onenet.ops.fused_criterion`: matching, losses and gradients on CUDA.

What takes time there is memory: one pass reads every logit once and writes every gradient once. A
kernel's grid is in its docstring; pointers are those of contiguous tensors.
"""

from __future__ import annotations

import triton
import triton.language as tl

# A target's best sample, packed so that the smallest number is the first cheapest: the cost above,
# the sample below.
_SAMPLE_BITS = tl.constexpr(32)
_SAMPLE_MASK = tl.constexpr(2**32 - 1)
NO_SAMPLE = 2**63 - 1
_NO_SAMPLE = tl.constexpr(NO_SAMPLE)
# Of onenet.ops.boxes and of onenet.assignment.costs.
_MIN_AREA = tl.constexpr(1e-7)
_EPS = tl.constexpr(1e-8)
_WRONG_LEVEL = tl.constexpr(9999.0)
_LOG2_E = tl.constexpr(1.4426950408889634)
_LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _exp(x, FAST: tl.constexpr):
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
def _log(x, FAST: tl.constexpr):
    if FAST:
        y = _LN2 * tl.inline_asm_elementwise(
            "lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        y = tl.log(x)
    return y


@triton.jit
def _one_over(x, FAST: tl.constexpr):
    if FAST:
        y = tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        y = 1.0 / x
    return y


@triton.jit
def _power(p, GAMMA: tl.constexpr):
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
def _as_negative(x, weight, GAMMA: tl.constexpr, FAST: tl.constexpr):
    """Focal loss of logits taken as negatives, and its derivative; see focal.py."""
    e = _exp(-tl.abs(x), FAST)
    # One division for 1 / (1 + e) and e / (2 + e).
    share = _one_over((1.0 + e) * (2.0 + e), FAST)
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
    factor = _power(p, GAMMA) * weight
    return factor * softplus, factor * (p + GAMMA * q * softplus)


@triton.jit
def _first_target(counts, counts_stride, image, images, IMAGES: tl.constexpr):
    """Where the targets of an image begin and end."""
    number = tl.arange(0, IMAGES)
    count = tl.load(counts + number * counts_stride, mask=number < images, other=0)
    begin = tl.sum(tl.where(number < image, count, 0), axis=0)
    return begin, begin + tl.sum(tl.where(number == image, count, 0), axis=0)


@triton.jit
def _giou(px1, py1, px2, py2, tx1, ty1, tx2, ty2):
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
def _giou_value(px1, py1, px2, py2, tx1, ty1, tx2, ty2, FAST: tl.constexpr):
    overlap, union, hull, width, height, hull_w, hull_h = _giou(
        px1, py1, px2, py2, tx1, ty1, tx2, ty2
    )
    share = overlap * _one_over(tl.maximum(union, _MIN_AREA), FAST)
    return share - (hull - union) * _one_over(tl.maximum(hull, _MIN_AREA), FAST)


@triton.jit
def _corners(boxes, row, mask):
    x1 = tl.load(boxes + row * 4, mask=mask, other=0.0)
    y1 = tl.load(boxes + row * 4 + 1, mask=mask, other=0.0)
    x2 = tl.load(boxes + row * 4 + 2, mask=mask, other=0.0)
    y2 = tl.load(boxes + row * 4 + 3, mask=mask, other=0.0)
    return x1, y1, x2, y2


@triton.jit
def _ordered(cost):
    """int64 in the order of float32 costs; NaN comes first, as in ``argmin``."""
    bits = cost.to(tl.int32, bitcast=True)
    # Negative numbers count backwards.
    key = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return tl.where(cost != cost, -(2**31), key.to(tl.int64))


@triton.jit
def negatives_and_matches(
    logits,
    gradient,
    box_gradient,
    losses,
    normaliser,
    samples,
    images,
    class_weight,
    negative_weight,
    # What follows serves matching.
    locations,
    location_stride,
    levels,
    sizes,
    target_boxes,
    target_scales,
    labels,
    counts,
    counts_stride,
    best,
    class_cost,
    l1_cost,
    giou_cost,
    alpha,
    CLASSES: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    IMAGES: tl.constexpr,
    TOGETHER: tl.constexpr,
    GAMMA: tl.constexpr,
    COST_GAMMA: tl.constexpr,
    KEEP: tl.constexpr,
    CLEAR: tl.constexpr,
    NORMALISE: tl.constexpr,
    LOCATION: tl.constexpr,
    FAST: tl.constexpr,
):
    """All logits as negatives: losses of (tiles, images) and gradients; every target's best sample.

    Grid: (tiles of ROWS samples, images).

    Args:
        KEEP, CLEAR, NORMALISE: write the logits' gradient; zero the boxes'; divide by the number.
        LOCATION: "boxes" or "points" to match by, "levels" for points that answer for sizes, or
            "none".
        FAST: by the card's own instructions, with errors of 2**-22.
    """
    tile, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    first = tile * ROWS
    image_row = image * samples

    if CLEAR:
        corner = tl.arange(0, 4 * ROWS)
        theirs = first * 4 + corner < samples * 4
        tl.store(box_gradient + (image_row + first) * 4 + corner, 0.0, mask=theirs)

    scale = class_weight
    if NORMALISE:
        scale = class_weight / tl.load(normaliser)
    start = (image_row + first) * CLASSES
    size = tl.minimum(ROWS, samples - first) * CLASSES
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    entry = tl.arange(0, BLOCK)
    # exp(-100) is 0: what lies outside adds nothing. The next logits are on their way while these
    # are worked on, and gradients go out of the cache's way.
    ahead = tl.load(logits + start + entry, mask=entry < size, other=-100.0)
    for begin_place in range(0, ROWS * CLASSES, BLOCK):
        place = begin_place + entry
        x = ahead.to(tl.float32)
        ahead = tl.load(logits + start + place + BLOCK, mask=place + BLOCK < size, other=-100.0)
        loss, slope = _as_negative(x, negative_weight, GAMMA, FAST)
        total += loss
        if KEEP:
            slope = slope * scale
            tl.store(gradient + start + place, slope, mask=place < size, cache_modifier=".cs")
    tl.store(losses + image * tl.num_programs(0) + tile, tl.sum(total, axis=0))

    # Now the logits that costs need are in the cache.
    if LOCATION != "none":
        row = first + tl.arange(0, ROWS)[:, None]
        there = row < samples
        begin, end = _first_target(counts, counts_stride, image, images, IMAGES)
        if LOCATION == "boxes":
            px1, py1, px2, py2 = _corners(locations + image * location_stride, row, there)
        else:
            px1 = tl.load(locations + row * 4, mask=there, other=0.0)
            py1 = tl.load(locations + row * 4 + 1, mask=there, other=0.0)
            if LOCATION == "levels":
                level = tl.load(levels + row, mask=there, other=0)
                smallest = tl.load(sizes + 2 * level)
                largest = tl.load(sizes + 2 * level + 1)
        for some in range(begin, end, TOGETHER):
            target = some + tl.arange(0, TOGETHER)[None, :]
            listed = target < end
            tx1, ty1, tx2, ty2 = _corners(target_boxes, target, listed)
            width = tl.load(target_scales + target * 4, mask=listed, other=1.0)
            height = tl.load(target_scales + target * 4 + 1, mask=listed, other=1.0)
            across, down = l1_cost * _one_over(width, FAST), l1_cost * _one_over(height, FAST)
            if LOCATION == "boxes":
                x_apart = tl.abs(px1 - tx1) + tl.abs(px2 - tx2)
                y_apart = tl.abs(py1 - ty1) + tl.abs(py2 - ty2)
                value = _giou_value(px1, py1, px2, py2, tx1, ty1, tx2, ty2, FAST)
                cost = across * x_apart + down * y_apart - giou_cost * value
            else:
                x_apart = tl.abs(2.0 * px1 - (tx1 + tx2))
                y_apart = tl.abs(2.0 * py1 - (ty1 + ty2))
                cost = across * x_apart + down * y_apart
                if LOCATION == "levels":
                    reach = tl.maximum(
                        tl.maximum(px1 - tx1, tx2 - px1), tl.maximum(py1 - ty1, ty2 - py1)
                    )
                    cost += tl.where((reach < smallest) | (reach > largest), _WRONG_LEVEL, 0.0)
            if class_cost != 0:
                label = tl.load(labels + target, mask=listed, other=0)
                column = (image_row + row) * CLASSES + label
                x = tl.load(logits + column, mask=there & listed, other=0.0).to(tl.float32)
                p = _one_over(1.0 + _exp(-x, FAST), FAST)
                q = 1.0 - p
                positive = alpha * _power(q, COST_GAMMA) * -_log(p + _EPS, FAST)
                negative = (1.0 - alpha) * _power(p, COST_GAMMA) * -_log(q + _EPS, FAST)
                cost += class_cost * (positive - negative)
            packed = (_ordered(cost) << _SAMPLE_BITS) | row.to(tl.int64)
            packed = tl.where(there, packed, _NO_SAMPLE)
            number = some + tl.arange(0, TOGETHER)
            tl.atomic_min(best + number, tl.min(packed, axis=0), mask=number < end, sem="relaxed")


@triton.jit
def positives(
    logits,
    gradient,
    boxes,
    normaliser,
    samples,
    images,
    class_weight,
    alpha,
    target_boxes,
    target_scales,
    labels,
    image_of,
    counts,
    counts_stride,
    best,
    losses,
    CLASSES: tl.constexpr,
    IMAGES: tl.constexpr,
    TOGETHER: tl.constexpr,
    GAMMA: tl.constexpr,
    KEEP: tl.constexpr,
):
    """The three losses of every target, (T, 3): what its sample's class loss changes, GIoU, L1.

    The last of the targets that share a sample gives its class. Grid: (T,).

    Args:
        TOGETHER: so many targets of an image are looked at at once.
    """
    target = tl.program_id(0)
    image = tl.load(image_of + target)
    sample = tl.load(best + target) & _SAMPLE_MASK
    row = image * samples + sample
    first, end = _first_target(counts, counts_stride, image, images, IMAGES)
    later = 0
    for begin in range(target + 1, end, TOGETHER):
        other = begin + tl.arange(0, TOGETHER)
        theirs = tl.load(best + other, mask=other < end, other=_NO_SAMPLE) & _SAMPLE_MASK
        later += tl.sum((theirs == sample).to(tl.int32), axis=0)

    change = 0.0
    if later == 0:
        place = row * CLASSES + tl.load(labels + target)
        x = tl.load(logits + place).to(tl.float32)
        # A positive is the negative of a mirrored logit.
        loss, slope = _as_negative(-x, alpha, GAMMA, False)
        as_negative, its_slope = _as_negative(x, 1.0 - alpha, GAMMA, False)
        change = loss - as_negative
        if KEEP:
            tl.store(gradient + place, -slope * class_weight / tl.load(normaliser))
    tl.store(losses + target * 3, change)

    px1, py1, px2, py2 = _corners(boxes, row, True)
    tx1, ty1, tx2, ty2 = _corners(target_boxes, target, True)
    width = tl.load(target_scales + target * 4)
    height = tl.load(target_scales + target * 4 + 1)
    value = _giou_value(px1, py1, px2, py2, tx1, ty1, tx2, ty2, False)
    tl.store(losses + target * 3 + 1, 1.0 - value)
    x_apart = tl.abs(px1 - tx1) + tl.abs(px2 - tx2)
    y_apart = tl.abs(py1 - ty1) + tl.abs(py2 - ty2)
    tl.store(losses + target * 3 + 2, x_apart / width + y_apart / height)


@triton.jit
def add_up(
    negative_losses,
    tiles,
    losses,
    targets,
    normaliser,
    class_weight,
    giou_weight,
    l1_weight,
    result,
    BLOCK: tl.constexpr,
):
    """The three weighted losses, always added up in the same order. Grid: (1,)."""
    entry = tl.arange(0, BLOCK)
    classes = tl.zeros((BLOCK,), dtype=tl.float32)
    giou = tl.zeros((BLOCK,), dtype=tl.float32)
    l1 = tl.zeros((BLOCK,), dtype=tl.float32)
    for begin in range(0, tiles, BLOCK):
        number = begin + entry
        classes += tl.load(negative_losses + number, mask=number < tiles, other=0.0)
    for begin in range(0, targets, BLOCK):
        number = begin + entry
        there = number < targets
        classes += tl.load(losses + number * 3, mask=there, other=0.0)
        giou += tl.load(losses + number * 3 + 1, mask=there, other=0.0)
        l1 += tl.load(losses + number * 3 + 2, mask=there, other=0.0)
    count = tl.load(normaliser)
    tl.store(result, tl.sum(classes, axis=0) * class_weight / count)
    tl.store(result + 1, tl.sum(giou, axis=0) * giou_weight / count)
    tl.store(result + 2, tl.sum(l1, axis=0) * l1_weight / count)


@triton.jit
def _above(a, b):
    """The share of max(a, b)'s gradient that a gets, as torch.maximum gives it."""
    return tl.where(a > b, 1.0, tl.where(a == b, 0.5, 0.0))


@triton.jit
def box_slopes(
    slopes,
    boxes,
    box_gradient,
    normaliser,
    samples,
    images,
    giou_weight,
    l1_weight,
    target_boxes,
    target_scales,
    image_of,
    counts,
    counts_stride,
    best,
    IMAGES: tl.constexpr,
    TOGETHER: tl.constexpr,
):
    """The boxes' gradient, where it is not 0. Grid: (T,).

    The last target of a sample adds up what all its targets give, always in the same order.

    Args:
        slopes: (3,) of what follows, by the three weighted losses.
    """
    target = tl.program_id(0)
    image = tl.load(image_of + target)
    sample = tl.load(best + target) & _SAMPLE_MASK
    first, end = _first_target(counts, counts_stride, image, images, IMAGES)
    count = tl.load(normaliser)
    of_giou = -tl.load(slopes + 1) * giou_weight / count
    of_l1 = tl.load(slopes + 2) * l1_weight / count
    row = image * samples + sample
    px1, py1, px2, py2 = _corners(boxes, row, True)
    last = 0
    g1, g2, g3, g4 = 0.0, 0.0, 0.0, 0.0
    for begin in range(first, end, TOGETHER):
        other = begin + tl.arange(0, TOGETHER)
        there = other < end
        theirs = tl.load(best + other, mask=there, other=_NO_SAMPLE) & _SAMPLE_MASK
        same = theirs == sample
        last = tl.maximum(last, tl.max(tl.where(same, other, 0), axis=0).to(tl.int32))
        tx1, ty1, tx2, ty2 = _corners(target_boxes, other, same)
        across = of_l1 / tl.load(target_scales + other * 4, mask=same, other=1.0)
        down = of_l1 / tl.load(target_scales + other * 4 + 1, mask=same, other=1.0)
        overlap, union, hull, width, height, hull_w, hull_h = _giou(
            px1, py1, px2, py2, tx1, ty1, tx2, ty2
        )
        # giou = overlap / union - (hull - union) / hull, with floors under what divides.
        inner_w = tl.where(width >= 0, tl.maximum(height, 0.0), 0.0)
        inner_h = tl.where(height >= 0, tl.maximum(width, 0.0), 0.0)
        over, under = tl.maximum(union, _MIN_AREA), tl.maximum(hull, _MIN_AREA)
        of_overlap = 1.0 / over
        of_union = 1.0 / under - tl.where(union >= _MIN_AREA, overlap / (over * over), 0.0)
        beyond = tl.where(hull >= _MIN_AREA, (hull - union) / (under * under), 0.0)
        of_hull = beyond - 1.0 / under
        lap = of_overlap - of_union
        tall, wide = (py2 - py1) * of_union, (px2 - px1) * of_union
        d1 = -lap * inner_w * _above(px1, tx1) - tall - of_hull * hull_h * _above(tx1, px1)
        d2 = -lap * inner_h * _above(py1, ty1) - wide - of_hull * hull_w * _above(ty1, py1)
        d3 = lap * inner_w * _above(tx2, px2) + tall + of_hull * hull_h * _above(px2, tx2)
        d4 = lap * inner_h * _above(ty2, py2) + wide + of_hull * hull_w * _above(py2, ty2)
        s1 = 2.0 * _above(px1, tx1) - 1.0
        s2 = 2.0 * _above(py1, ty1) - 1.0
        s3 = 2.0 * _above(px2, tx2) - 1.0
        s4 = 2.0 * _above(py2, ty2) - 1.0
        g1 += tl.sum(tl.where(same, of_giou * d1 + across * s1, 0.0), axis=0)
        g2 += tl.sum(tl.where(same, of_giou * d2 + down * s2, 0.0), axis=0)
        g3 += tl.sum(tl.where(same, of_giou * d3 + across * s3, 0.0), axis=0)
        g4 += tl.sum(tl.where(same, of_giou * d4 + down * s4, 0.0), axis=0)
    if last == target:
        tl.store(box_gradient + row * 4, g1)
        tl.store(box_gradient + row * 4 + 1, g2)
        tl.store(box_gradient + row * 4 + 2, g3)
        tl.store(box_gradient + row * 4 + 3, g4)


@triton.jit
def scale(gradient, slope, count, BLOCK: tl.constexpr):
    """Multiply in place by a scalar on the card; at once where it is 1. Grid: any."""
    factor = tl.load(slope)
    if factor != 1.0:
        step = tl.num_programs(0).to(tl.int64) * BLOCK
        for begin in range(tl.program_id(0).to(tl.int64) * BLOCK, count, step):
            place = begin + tl.arange(0, BLOCK)
            value = tl.load(gradient + place, mask=place < count)
            tl.store(gradient + place, value * factor, mask=place < count)
