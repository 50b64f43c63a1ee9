"""The dataset mapper of the Detectron2 engine."""

from __future__ import annotations

import pytest

pytest.importorskip("detectron2")

import json

import numpy as np
from detectron2.data import (
    detection_utils,
)
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from helpers.configs import ROOT
from PIL import Image

from onenet.d2 import OneNetDatasetMapper
from onenet.d2.config import get_cfg, load_cfg
from onenet.data.images import shortest_edge_size
from onenet.errors import DatasetError

R18 = ROOT / "projects" / "OneNet" / "configs" / "onenet.res18.nodcn.yaml"


@pytest.fixture
def record(tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (90, 140, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    boxes = [[10, 20, 30, 40], [0, 0, 140, 90], [100, 50, 39, 30], [5, 5, 100, 60], [60, 10, 9, 9]]
    annotations = [
        {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": i, "iscrowd": int(i == 3)}
        for i, box in enumerate(boxes)
    ]
    return {
        "file_name": str(tmp_path / "a.png"), "height": 90, "width": 140, "image_id": 1,
        "annotations": annotations,
    }  # fmt: skip


def mapper_cfg(*opts: str):
    words = ["INPUT.MIN_SIZE_TRAIN", "(64, 80, 96)", "INPUT.MAX_SIZE_TRAIN", "130"]
    return load_cfg(R18, [*words, "INPUT.CROP.SIZE", "(120, 300)", *opts])


def originals(cfg, record):
    """The original's mapper: which draws, in which order."""
    image = detection_utils.read_image(record["file_name"], format=cfg.INPUT.FORMAT)
    resize = T.ResizeShortestEdge(
        cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING
    )
    steps = [T.RandomFlip(), resize]
    cropped = cfg.INPUT.CROP.ENABLED and np.random.rand() <= 0.5
    if cropped:
        crop = T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE)
        steps[1:1] = [T.ResizeShortestEdge([400, 500, 600], sample_style="choice"), crop]
    image, transforms = T.apply_transform_gens(steps, image)
    annotations = [
        detection_utils.transform_instance_annotations(dict(a), transforms, image.shape[:2])
        for a in record["annotations"]
        if a["iscrowd"] == 0
    ]
    found = detection_utils.annotations_to_instances(annotations, image.shape[:2])
    return image, detection_utils.filter_empty_instances(found), cropped


@pytest.mark.parametrize("crop", ["True", "False"])
def test_pixels_and_boxes_are_the_originals(record, crop):
    cfg = mapper_cfg("INPUT.CROP.ENABLED", crop, "INPUT.FORMAT", "BGR")
    mapper = OneNetDatasetMapper(cfg, is_train=True)
    before = json.dumps(record)
    crops, empty = 0, 0
    for seed in range(40):
        np.random.seed(seed)
        image, instances, cropped = originals(cfg, record)
        np.random.seed(seed)
        inputs = mapper(record)
        assert (inputs["image"].numpy() == image.transpose(2, 0, 1)).all()
        assert (inputs["instances"].gt_boxes.tensor == instances.gt_boxes.tensor).all()
        assert inputs["instances"].gt_classes.tolist() == instances.gt_classes.tolist()
        assert 3 not in instances.gt_classes and "annotations" not in inputs
        assert inputs["instances"].image_size == tuple(inputs["image"].shape[1:])
        crops += cropped
        empty += len(instances) < 4
    assert json.dumps(record) == before
    assert (8 < crops < 32 and empty > 2) if crop == "True" else (crops, empty) == (0, 0)


def test_no_flip_and_no_annotations(record):
    record["annotations"] = []
    cfg = mapper_cfg("INPUT.RANDOM_FLIP", "none", "INPUT.CROP.ENABLED", "False")
    mapper = OneNetDatasetMapper(cfg, is_train=True)
    assert mapper.flip == [] and len(mapper(record)["instances"]) == 0


def test_boxes_without_a_size_are_left_out(record):
    for annotation, size in zip(
        record["annotations"], [[-5, 4], [0, 4], [4, float("nan")], [1, 1], [3, 4]], strict=True
    ):
        annotation["bbox"][2:] = size
    inputs = OneNetDatasetMapper(mapper_cfg("INPUT.CROP.ENABLED", "False"))(record)
    assert inputs["instances"].gt_classes.tolist() == [4]


def test_in_evaluation_images_are_only_resized(record):
    cfg = mapper_cfg("INPUT.MIN_SIZE_TEST", "45", "INPUT.CROP.ENABLED", "True")
    mapper = OneNetDatasetMapper(cfg, is_train=False)
    first, second = mapper(record), mapper(record)
    assert first["image"].shape == (3, 45, 70) and (first["image"] == second["image"]).all()
    assert "annotations" not in first and "instances" not in first
    assert (first["height"], first["width"]) == (90, 140)


@pytest.mark.parametrize("size", [(1, 900), (900, 1)])
@pytest.mark.parametrize("is_train", [True, False])
def test_very_thin_images_keep_a_pixel(record, size, is_train):
    height, width = size
    Image.new("RGB", (width, height)).save(record["file_name"])
    record |= {"height": height, "width": width}
    cfg = mapper_cfg("INPUT.CROP.ENABLED", "False", "INPUT.MAX_SIZE_TEST", "130")
    shape = OneNetDatasetMapper(cfg, is_train=is_train)(record)["image"].shape
    assert shape == (3, *shortest_edge_size(height, width, 64, 130)) and 1 in shape


def test_broken_images_are_named(record, tmp_path):
    mapper = OneNetDatasetMapper(get_cfg(), is_train=False)
    with pytest.raises(DatasetError, match="a.png.*expect"):
        mapper({**record, "width": 141})
    (tmp_path / "b.png").write_text("no image")
    with pytest.raises(DatasetError, match="b.png' cannot be read"):
        mapper({**record, "file_name": str(tmp_path / "b.png")})
    with pytest.raises(DatasetError, match="c.png' does not exist; check the image folder"):
        mapper({**record, "file_name": str(tmp_path / "c.png")})
