"""The backward pass of :mod:`onenet.ops.fused_criterion`."""

from __future__ import annotations

import triton
import triton.language as tl

from .formulas import MIN_AREA, NONE_PACKED, SAMPLE_MASK, corners, first_target, giou_parts


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
    sample = tl.load(best + target) & SAMPLE_MASK
    first, end = first_target(counts, counts_stride, image, images, IMAGES)
    count = tl.load(normaliser)
    of_giou = -tl.load(slopes + 1) * giou_weight / count
    of_l1 = tl.load(slopes + 2) * l1_weight / count
    row = image * samples + sample
    px1, py1, px2, py2 = corners(boxes, row, True)
    last = 0
    g1, g2, g3, g4 = 0.0, 0.0, 0.0, 0.0
    for begin in range(first, end, TOGETHER):
        other = begin + tl.arange(0, TOGETHER)
        there = other < end
        theirs = tl.load(best + other, mask=there, other=NONE_PACKED) & SAMPLE_MASK
        same = theirs == sample
        last = tl.maximum(last, tl.max(tl.where(same, other, 0), axis=0).to(tl.int32))
        tx1, ty1, tx2, ty2 = corners(target_boxes, other, same)
        across = of_l1 / tl.load(target_scales + other * 4, mask=same, other=1.0)
        down = of_l1 / tl.load(target_scales + other * 4 + 1, mask=same, other=1.0)
        overlap, union, hull, width, height, hull_w, hull_h = giou_parts(
            px1, py1, px2, py2, tx1, ty1, tx2, ty2
        )
        # giou = overlap / union - (hull - union) / hull, with floors under what divides.
        inner_w = tl.where(width >= 0, tl.maximum(height, 0.0), 0.0)
        inner_h = tl.where(height >= 0, tl.maximum(width, 0.0), 0.0)
        over, under = tl.maximum(union, MIN_AREA), tl.maximum(hull, MIN_AREA)
        of_overlap = 1.0 / over
        of_union = 1.0 / under - tl.where(union >= MIN_AREA, overlap / (over * over), 0.0)
        beyond = tl.where(hull >= MIN_AREA, (hull - union) / (under * under), 0.0)
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
