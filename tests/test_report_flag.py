"""train_net.py --eval-only --report, with both engines."""

from __future__ import annotations

import pytest
from helpers.runs import edit_json, refused, strict, trained

from onenet.evaluation.best_threshold import best_threshold
from onenet.evaluation.coco import average_precision
from onenet.evaluation.truth import read_truth
from onenet.files import hash_of


def test_the_report_of_an_evaluation(shapes, tmp_path, capsys, engine):
    config, weights = trained(tmp_path, shapes, {"class_names": ["other"] * 6})
    engine(config, "--eval-only", "--report", "OUTPUT_DIR", tmp_path)
    folder = tmp_path / "inference"
    content = strict((folder / "report.json").read_text())
    assert content["weights"] == {"file": str(weights), "sha256": hash_of(weights)}
    results = strict((folder / "coco_instances_results.json").read_text())
    truth = read_truth(shapes / "annotations" / "instances_val.json")
    assert content["ap"] == pytest.approx(average_precision(truth, results)["AP"])
    assert content["data_set"]["images"] == 6 and content["results"]["detections"] > 100
    assert content["data_set"]["missing_images"] == []
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert text.count("data:image/jpeg") == 2 * len(content["worst_images"]) > 0
    assert "Report: " in capsys.readouterr().out
    if content["best_threshold"] is not None:
        found = best_threshold(weights, ["other"] * 6, checkpoint=True)
        assert found == content["best_threshold"]


def test_the_report_of_a_set_without_objects(shapes, tmp_path, engine):
    bare = edit_json(shapes, tmp_path / "data", "val", lambda c: c.update(annotations=[]))
    config, _ = trained(tmp_path, bare)
    names = [f"{data}/annotations/instances_val.json:{data}/val" for data in (shapes, bare)]
    engine(config, "--eval-only", "--report", "DATASETS.TEST", str(tuple(names)))
    reports = sorted((tmp_path / "run" / "inference").glob("*/report.json"))
    objects = [strict(path.read_text())["data_set"]["objects"] for path in reports]
    assert len(objects) == 2 and min(objects) == 0 < max(objects)


def test_a_training_has_no_report(shapes, tmp_path, capsys, engine):
    config, _ = trained(tmp_path, shapes)
    assert "--report is about an evaluation" in refused(engine, capsys, config, "--report")
    assert not (tmp_path / "run").exists()
