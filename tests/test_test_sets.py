"""Test sets with little or strange in them, and the metrics that both engines write of them."""

from __future__ import annotations

import math
from typing import Any

import pytest
from helpers.runs import CURVES, edit_json, metrics, refused, strict, trained, write_config
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

Content = dict[str, Any]
NOTHING = "has no objects, so there is nothing to score"
# What makes a COCO file one without objects.
BARE = {
    "missing": lambda content: content.pop("annotations"),  # as COCO's test-dev
    "empty": lambda content: content.update(annotations=[]),
}


@pytest.mark.parametrize("kind", BARE)
def test_without_annotations_the_detections_are_written(shapes, tmp_path, capsys, engine, kind):
    data = edit_json(shapes, tmp_path / "data", "val", BARE[kind])
    config, _ = trained(tmp_path, data)
    assert not engine(config, "--eval-only")
    results = tmp_path / "run" / "inference" / "coco_instances_results.json"
    assert len({result["image_id"] for result in strict(results.read_text())}) == 6
    assert NOTHING in capsys.readouterr().out


@pytest.mark.parametrize("kind", BARE)
def test_training_goes_on_where_there_is_nothing_to_score(shapes, tmp_path, capsys, engine, kind):
    data = edit_json(shapes, tmp_path / "data", "val", BARE[kind])
    config = write_config(tmp_path, data, SOLVER__MAX_ITER=2, TEST__EVAL_PERIOD=1)
    engine(config)
    assert capsys.readouterr().out.count(NOTHING) == 2
    assert (tmp_path / "run" / "model_final.pth").is_file()
    assert not [name for line in metrics(tmp_path / "run") for name in line if "bbox/" in name]
    assert (tmp_path / "run" / "inference" / "coco_instances_results.json").is_file()


def test_a_set_without_annotations_beside_one_with_them(shapes, tmp_path, engine):
    data = edit_json(shapes, tmp_path / "data", "val", BARE["missing"])
    names = [f"{folder}/annotations/instances_val.json:{folder}/val" for folder in (data, shapes)]
    engine(write_config(tmp_path, data, SOLVER__MAX_ITER=1, DATASETS__TEST=names))
    found = {name for line in metrics(tmp_path / "run") for name in line if "bbox/AP50" in name}
    (name,) = found
    assert str(tmp_path) not in name and str(tmp_path).replace("/", "_") not in name
    assert len(list((tmp_path / "run" / "inference").rglob("coco_instances_results.json"))) == 2


@pytest.mark.parametrize("keep_empty", [True, False])
def test_training_without_annotations_is_refused(shapes, tmp_path, capsys, engine, keep_empty):
    data = edit_json(shapes, tmp_path / "data", "train", BARE["missing"])
    config = write_config(tmp_path, data, DATALOADER__FILTER_EMPTY_ANNOTATIONS=not keep_empty)
    error = refused(engine, capsys, config)
    assert "instances_train.json" in error and "'annotations' is missing" in error
    assert "can be tested on" in error


def test_classes_of_one_name_have_a_metric_each(shapes, tmp_path, capsys, engine):
    def same_name(content: Content) -> None:
        for category in content["categories"][:2]:
            category["name"] = "thing"

    data = edit_json(shapes, tmp_path / "one", "val", same_name)
    data = edit_json(data, tmp_path / "both", "train", same_name)
    engine(write_config(tmp_path, data, SOLVER__MAX_ITER=1, **CURVES))
    (line,) = (line for line in metrics(tmp_path / "run") if "bbox/AP" in line)
    names = {name for name in line if name.startswith("bbox/AP-")}
    assert len(names) == 6 and {"bbox/AP-thing (id 1)", "bbox/AP-thing (id 2)"} <= names
    curves = EventAccumulator(str(tmp_path / "run")).Reload().Tags()["scalars"]
    assert {name for name in names if not math.isnan(line[name])} <= set(curves)
    out = capsys.readouterr().out
    assert "thing (id 1)" in out and "thing (id 2)" in out


def test_metrics_that_cannot_be_computed_are_null(shapes, tmp_path, engine):
    def without_a_class(content: Content) -> None:
        some = content["categories"][0]["id"]
        kept = [a for a in content["annotations"] if a["category_id"] != some]
        content["annotations"] = kept

    data = edit_json(shapes, tmp_path / "data", "val", without_a_class)
    engine(write_config(tmp_path, data, SOLVER__MAX_ITER=1))
    lines = (tmp_path / "run" / "metrics.json").read_text().splitlines()
    found = {name: value for line in lines for name, value in strict(line).items()}
    assert found["bbox/AP-circle"] is None and found["bbox/AP"] is not None
