"""AP through Detectron2's COCO evaluation equals the embedded engine's."""

from __future__ import annotations

import pytest

pytest.importorskip("detectron2")

import json

import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, Instances
from helpers.detectron2_runs import name_of
from helpers.runs import edit_json, write_config

from onenet.d2 import Trainer, register_datasets
from onenet.d2.config import load_cfg
from onenet.data.dataset import CocoDetection
from onenet.data.sources import find_dataset
from onenet.evaluation.duplicates import detections_per_object
from onenet.lightning.evaluate import average_precision


@pytest.fixture
def cfg(shapes, tmp_path):
    return load_cfg(write_config(tmp_path, shapes))


def shifted_truth(name, evaluator, false_alarms=0):
    """Give the evaluator the true boxes, moved by up to a third, worse ones with lower scores."""
    evaluator.reset()
    for i, record in enumerate(DatasetCatalog.get(name)):
        boxes = torch.tensor([a["bbox"] for a in record["annotations"]], dtype=torch.float32)
        boxes[:, 2:] += boxes[:, :2]
        labels = torch.tensor([a["category_id"] for a in record["annotations"]])
        shift = torch.linspace(0, 0.3, len(boxes))
        boxes += (shift * (boxes[:, 2] - boxes[:, 0]))[:, None]
        far = torch.tensor([[0.0, 0, 2, 2]]).repeat(false_alarms, 1)
        found = Instances(
            (record["height"], record["width"]),
            pred_boxes=Boxes(torch.cat((far, boxes))),
            scores=torch.cat((torch.ones(false_alarms), 0.9 - shift - 0.01 * i)),
            pred_classes=torch.cat((torch.zeros(false_alarms, dtype=torch.int64), labels)),
        )
        evaluator.process([record], [{"instances": found}])
    return evaluator.evaluate()["bbox"]


@pytest.mark.parametrize(("most", "false_alarms"), [(100, 0), (7, 50), (100, 120), (300, 120)])
def test_ap_equals_the_embedded_engines(cfg, tmp_path, most, false_alarms):
    cfg.TEST.DETECTIONS_PER_IMAGE = most
    name = cfg.DATASETS.TEST[0]
    register_datasets([name])
    evaluator = Trainer.build_evaluator(cfg, name)
    found = shifted_truth(name, evaluator, false_alarms)
    results = json.loads((tmp_path / "run/inference/coco_instances_results.json").read_text())
    expected = average_precision(CocoDetection(find_dataset(name)), results, most)
    truth = json.loads(find_dataset(name).json_file.read_text())["annotations"]
    expected["bbox/duplicates"] = detections_per_object(truth, results)
    assert {f"bbox/{key}" for key in found} == set(expected)
    for key, value in found.items():
        assert value == pytest.approx(expected[f"bbox/{key}"], abs=1e-6, nan_ok=True), key
    # Beyond the limit, true boxes with scores below the false alarms do not count.
    assert (found["AP-circle"] > 0) == (false_alarms < 100 or most == 300)


def test_files_for_detection_alone_are_evaluated(cfg, shapes, tmp_path):
    """Without area and iscrowd, and with an annotation of id 0."""

    def strip(content):
        for i, annotation in enumerate(content["annotations"]):
            annotation.pop("area", None)
            annotation.pop("iscrowd", None)
            annotation["id"] = i

    stripped = name_of(edit_json(shapes, tmp_path / "stripped", "val", strip))
    whole = cfg.DATASETS.TEST[0]
    register_datasets([whole, stripped])
    a, b = (shifted_truth(n, Trainer.build_evaluator(cfg, n)) for n in (whole, stripped))
    assert a["AP50"] == b["AP50"] > 50 and a["AP"] == b["AP"]


def test_several_test_sets_do_not_overwrite_each_other(cfg, shapes):
    cfg.DATASETS.TEST = (name_of(shapes), name_of(shapes, "train"))
    register_datasets(cfg.DATASETS.TEST)
    folders = {Trainer.build_evaluator(cfg, name)._output_dir for name in cfg.DATASETS.TEST}
    assert len(folders) == 2
