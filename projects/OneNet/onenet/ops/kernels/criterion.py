"""The forward pass of :mod:`onenet.ops.fused_criterion`: matching, losses and the logits' gradient.

What takes time there is memory: one pass reads every logit once and writes every gradient once. A
kernel's grid is in its docstring; pointers are those of contiguous tensors.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .formulas import (
    NONE_PACKED,
    SAMPLE_BITS,
    SAMPLE_MASK,
    as_negative,
    corners,
    exp,
    first_target,
    giou_value,
    log,
    one_over,
    power,
)

# Of onenet.assignment.costs.
_EPS = tl.constexpr(1e-8)
_WRONG_LEVEL = tl.constexpr(9999.0)


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
        loss, slope = as_negative(x, negative_weight, GAMMA, FAST)
        total += loss
        if KEEP:
            slope = slope * scale
            tl.store(gradient + start + place, slope, mask=place < size, cache_modifier=".cs")
    tl.store(losses + image * tl.num_programs(0) + tile, tl.sum(total, axis=0))

    # Now the logits that costs need are in the cache.
    if LOCATION != "none":
        row = first + tl.arange(0, ROWS)[:, None]
        there = row < samples
        begin, end = first_target(counts, counts_stride, image, images, IMAGES)
        if LOCATION == "boxes":
            px1, py1, px2, py2 = corners(locations + image * location_stride, row, there)
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
            tx1, ty1, tx2, ty2 = corners(target_boxes, target, listed)
            width = tl.load(target_scales + target * 4, mask=listed, other=1.0)
            height = tl.load(target_scales + target * 4 + 1, mask=listed, other=1.0)
            across, down = l1_cost * one_over(width, FAST), l1_cost * one_over(height, FAST)
            if LOCATION == "boxes":
                x_apart = tl.abs(px1 - tx1) + tl.abs(px2 - tx2)
                y_apart = tl.abs(py1 - ty1) + tl.abs(py2 - ty2)
                value = giou_value(px1, py1, px2, py2, tx1, ty1, tx2, ty2, FAST)
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
                p = one_over(1.0 + exp(-x, FAST), FAST)
                q = 1.0 - p
                positive = alpha * power(q, COST_GAMMA) * -log(p + _EPS, FAST)
                negative = (1.0 - alpha) * power(p, COST_GAMMA) * -log(q + _EPS, FAST)
                cost += class_cost * (positive - negative)
            packed = (_ordered(cost) << SAMPLE_BITS) | row.to(tl.int64)
            packed = tl.where(there, packed, NONE_PACKED)
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
    sample = tl.load(best + target) & SAMPLE_MASK
    row = image * samples + sample
    first, end = first_target(counts, counts_stride, image, images, IMAGES)
    later = 0
    for begin in range(target + 1, end, TOGETHER):
        other = begin + tl.arange(0, TOGETHER)
        theirs = tl.load(best + other, mask=other < end, other=NONE_PACKED) & SAMPLE_MASK
        later += tl.sum((theirs == sample).to(tl.int32), axis=0)

    change = 0.0
    if later == 0:
        place = row * CLASSES + tl.load(labels + target)
        x = tl.load(logits + place).to(tl.float32)
        # A positive is the negative of a mirrored logit.
        loss, slope = as_negative(-x, alpha, GAMMA, False)
        before, its_slope = as_negative(x, 1.0 - alpha, GAMMA, False)
        change = loss - before
        if KEEP:
            tl.store(gradient + place, -slope * class_weight / tl.load(normaliser))
    tl.store(losses + target * 3, change)

    px1, py1, px2, py2 = corners(boxes, row, True)
    tx1, ty1, tx2, ty2 = corners(target_boxes, target, True)
    width = tl.load(target_scales + target * 4)
    height = tl.load(target_scales + target * 4 + 1)
    value = giou_value(px1, py1, px2, py2, tx1, ty1, tx2, ty2, False)
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
