"""Pixels and boxes equal Detectron2's; needs Detectron2."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from helpers.transform_script import DO, keep_size, picture, run, save

from onenet.data.images import read_image, shortest_edge_size
from onenet.data.transforms import TestTransform, TrainTransform


@pytest.fixture(scope="module")
def d2():
    pytest.importorskip("detectron2")
    from detectron2.data import detection_utils, transforms
    from detectron2.structures import BoxMode

    return SimpleNamespace(utils=detection_utils, T=transforms, xyxy=BoxMode.XYXY_ABS)


def detectron2_item(d2, image, boxes, gens):
    """Image, boxes and classes after Detectron2's mapper, with deterministic transforms."""
    image, transforms = d2.T.apply_transform_gens(gens, image)
    size = image.shape[:2]
    annotations = [
        {"bbox": list(map(float, box)), "bbox_mode": d2.xyxy, "category_id": label}
        for label, box in enumerate(boxes)
    ]
    annotations = [
        d2.utils.transform_instance_annotations(a, transforms, size) for a in annotations
    ]
    instances = d2.utils.annotations_to_instances(annotations, size)
    instances = d2.utils.filter_empty_instances(instances)
    return image, instances.gt_boxes.tensor.numpy(), instances.gt_classes.numpy()


def random_boxes(height, width, rng):
    corners = rng.uniform(-0.2, 1.2, (30, 2, 2)) * [width, height]
    boxes = np.concatenate((corners.min(axis=1), corners.max(axis=1)), axis=1)
    return boxes.round(2).astype(np.float32)


@pytest.mark.parametrize("flip", ["none", "horizontal", "vertical"])
@pytest.mark.parametrize("crop", [False, True])
@pytest.mark.parametrize("height, width", [(37, 53), (61, 40), (50, 50), (9, 200)])
def test_train_transform_equals_detectron2(d2, flip, crop, height, width):
    rng = np.random.default_rng(height)
    image = picture(height, width, seed=height)
    boxes = random_boxes(height, width, rng)
    gens, draws = [], []
    if flip != "none":
        gens.append(
            d2.T.RandomFlip(1.0, horizontal=flip == "horizontal", vertical=flip == "vertical")
        )
        draws.append(DO)
    if crop:
        gens.append(d2.T.ResizeShortestEdge([500], sample_style="choice"))
        gens.append(d2.T.CropTransform(17, 101, 333, 222))
        draws += [DO, 1, 222, 333, 101, 17]
    gens.append(d2.T.ResizeShortestEdge([448], 600, "choice"))
    transform = TrainTransform(
        min_sizes=(416, 448),
        max_size=600,
        flip=flip,
        crop=("absolute_range", (200, 400)) if crop else None,
    )
    ours = run(transform, image, boxes, *draws, 1)
    theirs = detectron2_item(d2, image, boxes, gens)
    assert 0 < len(theirs[2]) <= len(boxes)
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape and (a == b).all()


@pytest.mark.parametrize("kind, size", [("relative", (0.9, 0.31)), ("absolute", (384, 600))])
def test_crop_size_equals_detectron2(d2, kind, size):
    theirs = d2.T.RandomCrop(kind, size)
    for height, width in [(400, 601), (500, 377), (600, 600), (383, 1001)]:
        expected = theirs.get_crop_size((height, width))
        image = np.zeros((height, width, 3), dtype=np.uint8)
        short = min(height, width)
        if short in (400, 500, 600):  # the resize before the crop then changes nothing
            choice = (400, 500, 600).index(short)
            ours = run(keep_size(crop=(kind, size)), image, [], DO, choice, 0, 0, 0)[0]
            assert ours.shape[:2] == expected


def test_shortest_edge_size_equals_detectron2(d2):
    rng = np.random.default_rng(0)
    for height, width, short, limit in rng.integers(20, 1500, (3000, 4)).tolist():
        expected = d2.T.ResizeShortestEdge.get_output_shape(height, width, short, limit)
        if min(expected) > 0:
            assert shortest_edge_size(height, width, short, limit) == expected


@pytest.mark.parametrize("size", [(37, 53), (700, 31)])
def test_test_transform_equals_detectron2(d2, size):
    image = picture(*size)
    expected = d2.T.apply_transform_gens([d2.T.ResizeShortestEdge([256], 400, "choice")], image)[0]
    assert (TestTransform(256, 400)(image) == expected).all()


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
@pytest.mark.parametrize("orientation", [None, 3, 5, 6])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_read_image_equals_detectron2(d2, tmp_path, mode, orientation, image_format):
    path = save(tmp_path / "a.jpg", picture(33, 47), mode, orientation)
    expected = d2.utils.read_image(path, image_format)
    assert (read_image(path, image_format) == expected).all()
