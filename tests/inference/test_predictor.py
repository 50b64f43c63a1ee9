"""Detections of single images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.runs import write_config

from onenet.checkpoints.files import save_checkpoint
from onenet.errors import CheckpointError, ConfigError, DatasetError
from onenet.lightning.build import build_detector
from onenet.lightning.config import load_cfg
from onenet.lightning.predictor import Predictor
from onenet.structures import Detections

NAMES = ["a", "b", "c", "d", "e", "f"]


@pytest.fixture
def config(shapes, tmp_path) -> Path:
    return write_config(
        tmp_path, shapes, MODEL__WEIGHTS=str(tmp_path / "model.pth"),
        MODEL__RESNETS__NORM="FrozenBN",
    )  # fmt: skip


def weights(config: Path, **extras: Any) -> None:
    torch.manual_seed(0)
    cfg = load_cfg(config)
    save_checkpoint(Path(cfg.MODEL.WEIGHTS), {"model": build_detector(cfg).state_dict(), **extras})


def image(height: int = 80, width: int = 200) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_boxes_are_in_the_originals_pixels(config, monkeypatch):
    weights(config)
    predictor = Predictor(load_cfg(config))
    sizes = []

    def forward(images: list[torch.Tensor]) -> list[Detections]:
        sizes.extend(tuple(i.shape) for i in images)
        box = torch.tensor([[6.4, 2.6, 32.0, 13.0], [0.0, 0.0, 64.0, 26.0], [60.0, 20, 90, 40]])
        return [Detections(box, torch.tensor([0.9, 0.8, 0.7]), torch.tensor([1, 2, 3]))]

    monkeypatch.setattr(predictor.model, "forward", forward)
    found = predictor(image(80, 200))
    assert sizes == [(3, 26, 64)]  # the longer side may have 64 px
    boxes = [[20, 8, 100, 40], [0, 0, 200, 80], [187.5, 20 * 80 / 26, 200, 80]]
    torch.testing.assert_close(found.boxes, torch.tensor(boxes), rtol=1e-5, atol=1e-4)
    assert found.labels.tolist() == [1, 2, 3]


def test_at_most_k_detections_best_first(config):
    weights(config)
    found = Predictor(load_cfg(config, ["TEST.DETECTIONS_PER_IMAGE", "7"]))(image())
    assert 0 < len(found) <= 7
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    assert (found.boxes >= 0).all() and (found.boxes[:, 2] <= 200).all()
    assert (found.boxes[:, 3] <= 80).all()


def test_given_rgb_the_model_gets_the_order_of_its_format(config, monkeypatch):
    weights(config)
    red = np.zeros((64, 64, 3), np.uint8)
    red[..., 0] = 255
    for order, channel in (("RGB", 0), ("BGR", 2)):
        predictor = Predictor(load_cfg(config, ["INPUT.FORMAT", order]))
        seen = []
        empty = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
        monkeypatch.setattr(
            predictor.model, "forward", lambda x, seen=seen, empty=empty: seen.extend(x) or [empty]
        )
        assert len(predictor(red)) == 0
        assert seen[0].dtype == torch.uint8
        assert [int(seen[0][c].max()) for c in range(3)].index(255) == channel


def test_several_images_give_what_each_gives_alone(config, monkeypatch):
    weights(config)
    predictor = Predictor(load_cfg(config, ["TEST.IMS_PER_BATCH", "2"]))
    # Resized and padded to 32 × 64, 64 × 32, 64 × 64, 32 × 64 and 64 × 64 px.
    images = [image(80, 200), image(200, 80), image(64, 64), image(81, 200), image(70, 71)]
    alone = [predictor(one) for one in images]
    batches = []
    forward = predictor.model.forward
    monkeypatch.setattr(
        predictor.model, "forward", lambda pixels: batches.append(len(pixels)) or forward(pixels)
    )
    together = predictor.predict_batch(images * 2)
    assert batches == [2, 2, 2, 2, 2]
    for found, expected in zip(together, alone * 2, strict=True):
        torch.testing.assert_close(found.boxes, expected.boxes, rtol=1e-4, atol=1e-2)
        torch.testing.assert_close(found.scores, expected.scores, rtol=1e-4, atol=1e-5)
        assert torch.equal(found.labels, expected.labels)
    assert predictor.predict_batch([]) == []


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_model_is_prepared_as_test_says(config, precision):
    weights(config)
    predictor = Predictor(load_cfg(config, ["TEST.PRECISION", precision]))
    assert not any(hasattr(m, "running_var") for m in predictor.model.modules())
    assert predictor.model.head.feat1.weight.dtype == getattr(torch, precision)
    plain = Predictor(load_cfg(config, ["TEST.FUSE", "False"]))
    assert any(hasattr(m, "running_var") for m in plain.model.modules())
    assert len(predictor(image())) == len(plain(image())) > 0


def test_a_precision_that_cannot_be_is_refused(config):
    weights(config)
    with pytest.raises(ConfigError, match="TEST.PRECISION: float16 is slower.* take bfloat16"):
        Predictor(load_cfg(config, ["TEST.PRECISION", "float16"]))


def test_the_image_is_left_as_it_is(config):
    weights(config)
    pixels = image(64, 64)
    before = pixels.copy()
    Predictor(load_cfg(config))(pixels)
    assert (pixels == before).all()


@pytest.mark.parametrize("short", ["0", "64"])
@pytest.mark.parametrize(
    "wrong", [None, image()[..., 0], image() / 255, image().astype(np.uint16), image(0, 9)]
)
def test_other_arrays_than_images_are_refused(config, short, wrong):
    weights(config)
    predictor = Predictor(load_cfg(config, ["INPUT.MIN_SIZE_TEST", short]))
    with pytest.raises(DatasetError, match=r"Expected a NumPy array \(H, W, 3\) uint8 RGB, but"):
        predictor(wrong)


def test_class_names_come_from_the_checkpoint_first(config):
    weights(config, class_names=NAMES)
    assert Predictor(load_cfg(config)).class_names == NAMES


def test_class_names_come_from_the_test_set_next(config):
    weights(config)
    assert Predictor(load_cfg(config)).class_names[0] == "circle"


def test_cocos_class_names_need_none_of_its_files(shapes, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    options = {"MODEL__OneNet__NUM_CLASSES": 80, "DATASETS__TEST": ["coco_2017_val"]}
    path = str(tmp_path / "model.pth")
    config = write_config(tmp_path, shapes, MODEL__WEIGHTS=path, **options)
    weights(config)
    names = Predictor(load_cfg(config)).class_names
    assert len(names) == 80 and (names[0], names[11], names[-1]) == (
        "person",
        "stop sign",
        "toothbrush",
    )


def test_class_names_are_numbers_where_nothing_tells_them(config, tmp_path):
    weights(config)
    for test in ("()", f"('{tmp_path}/none.json:{tmp_path}',)"):
        names = Predictor(load_cfg(config, ["DATASETS.TEST", test])).class_names
        assert names == [f"class {i}" for i in range(6)]


def test_no_weights_are_refused(config):
    with pytest.raises(CheckpointError, match="MODEL.WEIGHTS is empty"):
        Predictor(load_cfg(config, ["MODEL.WEIGHTS", ""]))


def test_a_backbone_alone_is_refused(config, tmp_path):
    save_checkpoint(tmp_path / "model.pth", {"layer1.0.conv1.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="holds a backbone only"):
        Predictor(load_cfg(config))
