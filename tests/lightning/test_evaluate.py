"""Detecting in a data set with the embedded engine, and the files that evaluation leaves."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from helpers.coco_example import perfect
from helpers.runs import write_config

from onenet.data.dataset import CocoDetection
from onenet.data.sources import DatasetSource, find_dataset
from onenet.evaluation.coco import average_precision
from onenet.evaluation.duplicates import detections_per_object
from onenet.evaluation.registry import choose_evaluator
from onenet.evaluation.report import score, tables
from onenet.evaluation.truth import read_truth
from onenet.lightning.build import build_detector
from onenet.lightning.config import load_cfg
from onenet.lightning.evaluate import detect_all, evaluate, to_original
from onenet.lightning.items import TestItem
from onenet.lightning.loader import build_test_loader
from onenet.lightning.test_sets import evaluate_all
from onenet.structures import Detections


def test_detections_go_to_the_originals_pixels_and_are_clipped_to_it():
    sample = TestItem(torch.zeros(3, 50, 100, dtype=torch.uint8), 1, "a.png", 100, 400)
    detections = Detections(
        torch.tensor([[10.0, 20.0, 30.0, 40.0], [-5.0, 45.0, 120.0, 60.0], [-9.0, 0.0, -1.0, 9.0]]),
        torch.tensor([0.9, 0.8, 0.7]),
        torch.tensor([0, 1, 2]),
    )
    original = to_original(sample, detections)
    assert original.boxes.tolist() == [[40, 40, 120, 80], [0, 90, 400, 100]]
    assert original.labels.tolist() == [0, 1]


@pytest.fixture
def cfg(shapes, tmp_path) -> Any:
    return load_cfg(write_config(tmp_path, shapes))


def shapes_val(cfg: Any) -> CocoDetection:
    return CocoDetection(find_dataset(cfg.DATASETS.TEST[0]))


def test_evaluate_writes_the_results_and_scores_them(cfg, tmp_path):
    torch.manual_seed(0)
    model, data = build_detector(cfg).train(), shapes_val(cfg)
    metrics = evaluate(cfg, model, data, tmp_path / "new" / "folder")
    assert model.training
    file = tmp_path / "new" / "folder" / "coco_instances_results.json"
    results = json.loads(file.read_text())
    assert {r["image_id"] for r in results} <= set(data.image_ids.tolist())
    assert {r["category_id"] for r in results} <= set(data.category_ids)
    assert max(np.bincount([r["image_id"] for r in results])) <= 100
    for row in results:
        assert set(row) == {"image_id", "category_id", "bbox", "score"}
        x, y, w, h = row["bbox"]
        assert 0 <= x and 0 <= y and w > 0 and h > 0 and x + w <= 64.001 and y + h <= 64.001
    truth = read_truth(data.source.json_file)
    assert metrics.pop("bbox/duplicates") == pytest.approx(
        detections_per_object(truth["annotations"], results), nan_ok=True
    )
    expected = {f"bbox/{k}": v for k, v in average_precision(truth, results).items()}
    assert metrics == pytest.approx(expected, nan_ok=True)
    assert [p.name for p in file.parent.iterdir()] == [file.name]


def test_duplicates_are_counted_beside_ap(cfg):
    truth = read_truth(shapes_val(cfg).source.json_file)
    once = perfect(truth)
    # As many detections count as there are objects: two of the first, none of the last.
    for results, mean in (
        (once, 1),
        ([{**once[0], "score": 2}, *once], len(once) / (len(once) - 1)),
    ):
        metrics = score(choose_evaluator(cfg), truth, results)
        assert metrics["duplicates"] == pytest.approx(mean)
        assert tables(metrics).endswith(f"duplicates: {mean:.2f} detections per matched object")


def test_batches_do_not_change_what_is_found(cfg, tmp_path):
    torch.manual_seed(0)
    model, data = build_detector(cfg).eval(), shapes_val(cfg)
    found = {}
    for count in (1, 4):
        cfg = cfg.clone()
        cfg.defrost()
        cfg.TEST.IMS_PER_BATCH = count
        batches = list(build_test_loader(cfg, data))
        assert [len(batch) for batch in batches] == ([1] * 6 if count == 1 else [4, 2])
        found[count] = {s.image_id: d for s, d in detect_all(model, batches)}
    assert found[1].keys() == found[4].keys() == {*data.image_ids.tolist()}
    for image_id, one in found[1].items():
        torch.testing.assert_close(one.boxes, found[4][image_id].boxes, rtol=1e-4, atol=1e-2)
        torch.testing.assert_close(one.scores, found[4][image_id].scores, rtol=1e-4, atol=1e-5)


def test_detect_all_restores_the_training_mode_even_if_it_is_left_early(cfg):
    model = build_detector(cfg).train()
    sample = TestItem(torch.zeros(3, 32, 32, dtype=torch.uint8), 1, "a.png", 32, 32)
    detections = detect_all(model, [[sample], [sample]])
    next(detections)
    assert not model.training
    detections.close()
    assert model.training


def test_several_test_sets_keep_their_metrics_and_files_apart(cfg, tmp_path):
    first = shapes_val(cfg)
    second = CocoDetection(
        DatasetSource("other/set", first.source.json_file, first.source.image_root)
    )
    model = build_detector(cfg)
    metrics = evaluate_all(cfg, model, [first, second])
    assert metrics["other_set/bbox/AP"] == metrics[f"{first.source.name.replace('/', '_')}/bbox/AP"]
    assert len(list((tmp_path / "run" / "inference").glob("*/*results.json"))) == 2
