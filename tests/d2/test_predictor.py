"""The predictor of the Detectron2 engine."""

from __future__ import annotations

import pytest

pytest.importorskip("detectron2")


import numpy as np
from helpers.detectron2_runs import assert_same_detections, trained
from helpers.runs import CLASSES

from onenet.d2 import predictor as d2_predictor
from onenet.errors import DatasetError
from onenet.lightning import predictor as embedded_predictor


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_the_predictor_equals_the_embedded_engines(shapes, tmp_path, image_format):
    config, _ = trained(tmp_path, shapes, INPUT__FORMAT=image_format)
    image = np.random.default_rng(0).integers(0, 256, (80, 200, 3), dtype=np.uint8)
    found = [m.build_predictor(str(config)) for m in (embedded_predictor, d2_predictor)]
    assert_same_detections(*(predict(image) for predict in found))
    assert found[0].class_names == found[1].class_names == CLASSES
    missing = ["DATASETS.TEST", "('no.json:no',)"]
    assert d2_predictor.build_predictor(str(config), missing).class_names[:1] == ["class 0"]


@pytest.mark.parametrize("short", ["0", "64"])
def test_other_arrays_than_images_are_refused(shapes, tmp_path, short):
    config, _ = trained(tmp_path, shapes)
    predictor = d2_predictor.build_predictor(str(config), ["INPUT.MIN_SIZE_TEST", short])
    image = np.zeros((40, 64, 3), np.uint8)
    for wrong in (None, image[..., 0], image / 255, image.astype(np.uint16), image[:0]):
        with pytest.raises(DatasetError, match=r"Expected a NumPy array \(H, W, 3\) uint8 RGB"):
            predictor(wrong)


def test_several_images_give_what_each_gives_alone(shapes, tmp_path):
    config, _ = trained(tmp_path, shapes)
    predictor = d2_predictor.build_predictor(str(config), ["TEST.IMS_PER_BATCH", "2"])
    rng = np.random.default_rng(0)
    sizes = [(80, 200), (64, 64), (81, 200), (70, 190)]
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    together = predictor.predict_batch(images)
    for image, found in zip(images, together, strict=True):
        assert_same_detections(found, predictor(image))
