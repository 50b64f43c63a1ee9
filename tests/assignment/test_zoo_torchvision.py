"""The rules of RetinaNet and FCOS choose what torchvision's detectors choose."""

from __future__ import annotations

import math
from types import SimpleNamespace

import torch
from helpers.rows import exclusive, on, threshold
from torchvision.models.detection import _utils, fcos
from torchvision.models.detection.retinanet import RetinaNetClassificationHead
from torchvision.ops import box_iou

from onenet import Criterion, Targets
from onenet.assignment.one_to_many import CentreRegion
from onenet.ops.boxes import anchor_grid, cell_anchors, point_grid

close = torch.testing.assert_close


def many_targets(size=256, count=40):
    """Boxes from 4 to 200 px; no two have the same area."""
    generator = torch.Generator().manual_seed(0)
    middle = torch.rand(count, 2, generator=generator) * size
    half = torch.exp(torch.rand(count, 2, generator=generator) * math.log(50)) * 2
    boxes = torch.cat((middle - half, middle + half), dim=1).clamp(0, size)
    boxes = boxes[(boxes[:, 2:] - boxes[:, :2]).amin(dim=1) > 1]
    return Targets(boxes, torch.arange(len(boxes)) % 3, (size, size))


def by_sample(matches, count):
    """(N,) the target of each sample of one image: -1 negative, -2 ignored, as torchvision says."""
    found = torch.full((count,), -1)
    found[matches.sample] = matches.target
    if matches.ignored is not None:
        assert not matches.ignored[0, matches.sample].any()
        found[matches.ignored[0]] = -2
    return found


def test_torchvisions_retinanet_agrees():
    """On its choices and, with our focal loss, on its class loss."""
    grids = [
        anchor_grid(cell_anchors([s, s * 1.26, s * 1.59], [0.5, 1.0, 2.0]), n, n, stride, 0.5)
        for s, n, stride in ((16, 32, 8), (32, 16, 16), (64, 8, 32), (128, 4, 64))
    ]
    levels = [i for i, grid in enumerate(grids) for _ in range(len(grid))]
    given, goal = on(torch.cat(grids), levels, classes=3), many_targets()
    given.logits.copy_(torch.randn(given.logits.shape, generator=torch.Generator().manual_seed(1)))
    theirs = _utils.Matcher(0.5, 0.4, allow_low_quality_matches=True)(
        box_iou(goal.boxes, given.samples)
    )
    ours = threshold()(given, [goal])
    assert torch.equal(by_sample(ours, len(given.samples)), theirs)
    assert {-2, -1} < set(theirs.tolist()) and len(set(theirs.tolist())) > 20

    head = RetinaNetClassificationHead(4, 1, 3)
    expected = head.compute_loss([{"labels": goal.labels}], {"cls_logits": given.logits}, [theirs])
    criterion = Criterion(matcher=threshold(), class_weight=1.0, per_positive=True)
    close(criterion(given, [goal])["loss_ce"], expected)


def test_torchvisions_fcos_agrees():
    strides, counts = (8, 16, 32), (32, 16, 8)
    points = [point_grid(n, n, stride) for n, stride in zip(counts, strides, strict=True)]
    levels = [i for i, grid in enumerate(points) for _ in range(len(grid))]
    given, goal = on(torch.cat(points).repeat(1, 2), levels), many_targets()
    cells = [torch.cat((p - s / 2, p + s / 2), dim=1) for p, s in zip(points, strides, strict=True)]
    told = SimpleNamespace(
        center_sampling_radius=1.5,
        head=SimpleNamespace(compute_loss=lambda *args: args[-1]),
    )
    (theirs,) = fcos.FCOS.compute_loss(
        told, [{"boxes": goal.boxes}], {}, [torch.cat(cells)], [n * n for n in counts]
    )
    sizes = [(-1, 64), (64, 128), (128, math.inf)]
    ours = exclusive(CentreRegion(radius=1.5, level_sizes=sizes))(given, [goal])
    assert torch.equal(by_sample(ours, len(given.samples)), theirs)
    assert len(set(theirs.tolist())) > 20
