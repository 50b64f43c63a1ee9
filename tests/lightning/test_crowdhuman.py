"""The two CrowdHuman configs on the embedded engine, from annotation files to metrics."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from helpers.configs import CONFIGS, R50, refused
from helpers.crowdhuman_example import SIZE, SMALL, make
from helpers.runs import metrics, train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from onenet.data.coco_json import read_coco_json
from onenet.data.dataset import CocoDetection
from onenet.data.sources import ROOT_VARIABLE, find_dataset
from onenet.evaluation.crowdhuman import evaluate_crowdhuman
from onenet.lightning.config import load_cfg
from onenet.lightning.loader import build_train_loader

NAMES = ("AP", "mMR", "Recall")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make(tmp_path_factory.mktemp("datasets"))


@pytest.fixture(autouse=True)
def known(root, monkeypatch):
    monkeypatch.setenv(ROOT_VARIABLE, str(root))


@pytest.mark.parametrize("head", ["fcos", "retinanet"])
def test_the_configs_train_and_evaluate(head, tmp_path):
    config = CONFIGS / f"onenet.{head}.res50.crowdhuman.yaml"
    found = train(config, "--engine", "lightning", *SMALL, "OUTPUT_DIR", tmp_path)
    duplicates = found.pop("crowdhuman/duplicates")
    assert math.isnan(duplicates) or duplicates >= 1
    assert set(found) == {f"crowdhuman/{name}" for name in NAMES}
    results = json.loads((tmp_path / "inference" / "coco_instances_results.json").read_text())
    assert set(results[0]) == {"image_id", "category_id", "bbox", "score"}
    truth = read_coco_json(find_dataset("CrowdHuman_val").json_file)
    assert found == {
        f"crowdhuman/{k}": v for k, v in evaluate_crowdhuman(truth, results).percent().items()
    }
    assert all(0 <= value <= 100 for value in found.values())
    most = max(np.bincount([r["image_id"] for r in results]))
    assert 100 < most <= 500 if head == "retinanet" else most <= 500
    assert metrics(tmp_path)[-1].items() >= found.items()
    curves = EventAccumulator(str(tmp_path)).Reload().Tags()["scalars"]
    found["crowdhuman/duplicates"] = duplicates
    assert {k for k in curves if "/" in k} == {k for k, v in found.items() if not math.isnan(v)}
    log = (tmp_path / "log.txt").read_text().replace(" ", "")
    assert "|AP|mMR|Recall|" in log and f"|{found['crowdhuman/Recall']:.2f}|" in log


def test_boxes_beyond_the_image_are_kept_until_training_clips_them(tmp_path):
    data = CocoDetection(find_dataset("CrowdHuman_train"))
    boxes = data.record(0).boxes
    assert boxes[:, 0].min() == -6 and boxes[:, 2].max() == 102
    cfg = load_cfg(CONFIGS / "onenet.fcos.res50.crowdhuman.yaml", [*SMALL, "SEED", "1"])
    item = next(iter(build_train_loader(cfg)))[0]
    clipped = item.targets.boxes
    assert item.image.shape[1:] == SIZE[::-1]  # the resize leaves this size as it is
    assert clipped[:, 0].min() == 0 and clipped[:, 2].max() <= SIZE[0]
    # Of seven people one is to be ignored; those cut off by the image are narrower now.
    assert sorted((clipped[:, 2] - clipped[:, 0]).tolist()) == [6, 6, 12, 12, 12, 12]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("pascal", "TEST.EVALUATOR must be one of coco, crowdhuman, got 'pascal'"),
        ("crowdhuman", "single class, but MODEL.OneNet.NUM_CLASSES is 80"),
    ],
)
def test_an_evaluator_that_does_not_fit_is_refused_before_training(value, message):
    assert message in refused(R50, "TEST.EVALUATOR", value)
