"""The core's metrics through Detectron2 equal those of Detectron2's own evaluator."""

from __future__ import annotations

import pytest

pytest.importorskip("detectron2")

import itertools
import json
import math

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances
from helpers.detectron2_runs import name_of
from helpers.runs import edit_json, write_config

from onenet.d2 import Trainer, register_datasets
from onenet.d2.config import load_cfg
from onenet.data.sources import find_dataset
from onenet.evaluation.coco import average_precision
from onenet.evaluation.duplicates import detections_per_object
from onenet.evaluation.truth import read_truth


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


def detectron2s(name, results, most):
    """The metrics of Detectron2's own evaluator for detections in COCO's results format."""
    evaluator = COCOEvaluator(name, ("bbox",), max_dets_per_image=most, distributed=False)
    label_of = MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id
    evaluator._predictions = [
        {"instances": [{**r, "category_id": label_of[r["category_id"]]} for r in results]}
    ]
    evaluator._results = {}
    evaluator._eval_predictions(evaluator._predictions)
    return evaluator._results["bbox"]


@pytest.mark.parametrize(("most", "false_alarms"), [(100, 0), (7, 50), (100, 120), (300, 120)])
def test_ap_equals_detectron2s(cfg, tmp_path, most, false_alarms):
    cfg.TEST.DETECTIONS_PER_IMAGE = most
    name = cfg.DATASETS.TEST[0]
    register_datasets([name])
    evaluator = Trainer.build_evaluator(cfg, name)
    found = shifted_truth(name, evaluator, false_alarms)
    results = json.loads((tmp_path / "run/inference/coco_instances_results.json").read_text())
    truth = read_truth(find_dataset(name).json_file)
    expected = average_precision(truth, results, most)
    expected["duplicates"] = detections_per_object(truth["annotations"], results)
    assert found == pytest.approx(expected, abs=1e-6, nan_ok=True)
    theirs = detectron2s(name, results, max(100, most))
    assert theirs == pytest.approx({key: found[key] for key in theirs}, abs=1e-6, nan_ok=True)
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
    folders = {Trainer.build_evaluator(cfg, name).output_dir for name in cfg.DATASETS.TEST}
    assert len(folders) == 2


BAD = ([3, 3, 0, 5], [9, 9, -4, 5], [64, 3, 5, 5], [math.nan, 3, 5, 5], [3, 3, math.inf, 5])


@pytest.mark.parametrize(("evaluator", "metric"), [("coco", "AP"), ("crowdhuman", "Recall")])
def test_boxes_that_are_left_out_are_not_to_be_found(cfg, shapes, tmp_path, evaluator, metric):
    """The objects that Detectron2's loader gives are all that is to be found."""

    def add(content):
        (first, *_) = content["categories"]
        content["categories"] = [first]
        some = content["annotations"][0]
        content["annotations"] += [
            {**some, "id": 1000 + n, "bbox": box, "area": 25, "iscrowd": crowd}
            for n, (box, crowd) in enumerate(itertools.product(BAD, (0, 1)))
        ]
        for annotation in content["annotations"]:
            annotation["category_id"] = first["id"]

    cfg.MODEL.OneNet.NUM_CLASSES = 1
    cfg.TEST.EVALUATOR = evaluator
    name = name_of(edit_json(shapes, tmp_path / "data", "val", add))
    register_datasets([name])
    chosen = Trainer.build_evaluator(cfg, name)
    for record in DatasetCatalog.get(name):
        boxes = torch.tensor([a["bbox"] for a in record["annotations"]], dtype=torch.float32)
        boxes[:, 2:] += boxes[:, :2]
        found = Instances((record["height"], record["width"]), pred_boxes=Boxes(boxes))
        found.scores = torch.ones(len(boxes))
        found.pred_classes = torch.zeros(len(boxes), dtype=torch.int64)
        chosen.process([record], [{"instances": found}])
    ((_, metrics),) = chosen.evaluate().items()
    assert metrics[metric] == pytest.approx(100)
    assert metrics["duplicates"] >= 1
