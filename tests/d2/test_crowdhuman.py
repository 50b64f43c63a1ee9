"""The two CrowdHuman configs on Detectron2, and its evaluator against the core's metrics."""

from __future__ import annotations

import pytest

pytest.importorskip("detectron2")

import json
import math
from pathlib import Path

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from helpers.configs import CONFIGS, R50
from helpers.crowdhuman_example import SMALL, make
from helpers.detectron2_runs import train_d2
from helpers.runs import metrics

from onenet.d2 import Trainer, register_datasets
from onenet.d2.config import load_cfg
from onenet.data.coco_json import read_coco_json
from onenet.evaluation.crowdhuman import evaluate_crowdhuman
from onenet.evaluation.duplicates import detections_per_object


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Entries of DATASETS.TRAIN and TEST: names of other folders' files would stay registered."""
    root = make(tmp_path_factory.mktemp("datasets")) / "crowdhuman"
    return [f"{root}/annotations/{s}.json:{root}/CrowdHuman_{s}" for s in ("train", "val")]


@pytest.fixture
def cfg(parts, tmp_path):
    config = CONFIGS / "onenet.fcos.res50.crowdhuman.yaml"
    changes = ["DATASETS.TEST", f"('{parts[1]}',)", "OUTPUT_DIR", str(tmp_path)]
    register_datasets(parts[1:])
    return load_cfg(config, [*SMALL, *changes])


def expected(part, output):
    """The core's metrics of a run's results file, by their names in metrics.json."""
    truth = read_coco_json(Path(part.partition(":")[0]))
    results = json.loads((output / "inference" / "coco_instances_results.json").read_text())
    scored = evaluate_crowdhuman(truth, results).percent()
    scored["duplicates"] = detections_per_object(truth["annotations"], results)
    return {f"crowdhuman/{name}": value for name, value in scored.items()}


@pytest.mark.parametrize("head", ["fcos", "retinanet"])
def test_the_configs_train_and_evaluate(head, parts, tmp_path):
    config = CONFIGS / f"onenet.{head}.res50.crowdhuman.yaml"
    sets = ["DATASETS.TRAIN", f"('{parts[0]}',)", "DATASETS.TEST", f"('{parts[1]}',)"]
    train_d2(config, *SMALL, *sets, "OUTPUT_DIR", tmp_path)
    found = {k: v for line in metrics(tmp_path) for k, v in line.items() if "/" in k}
    assert found == pytest.approx(expected(parts[1], tmp_path), nan_ok=True)
    log = (tmp_path / "log.txt").read_text().replace(" ", "")
    assert "|AP|mMR|Recall|" in log and "crowdhuman" in log


def test_the_evaluator_gives_the_cores_metrics_and_writes_coco_results(cfg, parts, tmp_path):
    evaluator = Trainer.build_evaluator(cfg, parts[1])
    for i, record in enumerate(DatasetCatalog.get(parts[1])):
        boxes = torch.tensor([a["bbox"] for a in record["annotations"]], dtype=torch.float32)
        boxes[:, 2:] += boxes[:, :2]
        boxes = torch.cat((boxes, torch.tensor([[0.0, 0, 5, 5]])))  # a false alarm
        found = Instances(
            (record["height"], record["width"]),
            pred_boxes=Boxes(boxes),
            scores=torch.linspace(0.9, 0.1, len(boxes)) - 0.01 * i,
            pred_classes=torch.zeros(len(boxes), dtype=torch.int64),
        )
        evaluator.process([record], [{"instances": found}])
    scored = evaluator.evaluate()["crowdhuman"]
    results = json.loads((tmp_path / "inference" / "coco_instances_results.json").read_text())
    assert {r["category_id"] for r in results} == {1}
    assert {f"crowdhuman/{k}": v for k, v in scored.items()} == expected(parts[1], tmp_path)
    assert scored["Recall"] == 100 and 90 < scored["AP"] < 100
    evaluator.reset()
    nothing = {"AP": 0, "mMR": 100, "Recall": 0, "duplicates": math.nan}
    assert evaluator.evaluate()["crowdhuman"] == pytest.approx(nothing, nan_ok=True)


def test_a_data_set_without_a_coco_file_is_scored(cfg, tmp_path):
    """By what Detectron2 knows of it; an id may be text there."""
    box = {"bbox": [5, 5, 30, 40], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "iscrowd": 0}
    record = {"file_name": "a.png", "image_id": "one", "height": 64, "width": 64}
    DatasetCatalog.register("no file", lambda: [{**record, "annotations": [box]}])
    MetadataCatalog.get("no file").set(
        thing_classes=["person", "other"], thing_dataset_id_to_contiguous_id={9: 0, 4: 1}
    )
    found = Instances((64, 64), pred_boxes=Boxes(torch.tensor([[5.0, 5.0, 35.0, 45.0]])))
    found.scores, found.pred_classes = torch.tensor([0.5]), torch.tensor([0])
    scored = {}
    try:
        for name in ("crowdhuman", "coco"):
            cfg.TEST.EVALUATOR = name
            evaluator = Trainer.build_evaluator(cfg, "no file")
            evaluator.process([record], [{"instances": found}])
            scored |= evaluator.evaluate()
    finally:
        DatasetCatalog.remove("no file")
        MetadataCatalog.remove("no file")
    assert scored["crowdhuman"]["Recall"] == 100
    assert scored["bbox"]["AP"] == scored["bbox"]["AP-person"] == pytest.approx(100)
    (result,) = json.loads((tmp_path / "inference" / "coco_instances_results.json").read_text())
    assert (result["image_id"], result["category_id"]) == ("one", 9)


def test_an_evaluator_that_does_not_fit_is_refused_before_training(parts, capsys):
    with pytest.raises(SystemExit) as stop:
        train_d2(R50, "--eval-only", "TEST.EVALUATOR", "crowdhuman", "MODEL.DEVICE", "cpu")
    assert stop.value.code == 2
    assert "single class, but MODEL.OneNet.NUM_CLASSES is 80" in capsys.readouterr().err
