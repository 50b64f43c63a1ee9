"""Evaluation counts the boxes that the loaders take, and no others."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
from helpers.coco_example import write
from helpers.configs import R50
from helpers.runs import strict

from onenet.data.dataset import CocoDetection
from onenet.evaluation.registry import choose_evaluator
from onenet.evaluation.report import report, score
from onenet.evaluation.truth import counted, has_objects, read_truth
from onenet.lightning.config import load_cfg

NAN, INF = math.nan, math.inf
LEFT_OUT = {
    "no-width": [3, 3, 0, 5],
    "negative-size": [9, 9, -4, 5],
    "right-of-the-image": [64, 3, 5, 5],
    "left-of-the-image": [-9, 3, 9, 5],
    "below-the-image": [3, 48, 5, 5],
    "nan": [NAN, 3, 5, 5],
    "nan-size": [3, 3, NAN, 5],
    "infinite": [3, 3, INF, 5],
    "beyond-float32": [3, 3, 1e39, 5],
    "too-small-for-float32": [9, 9, 1e-9, 5],
}
EVALUATORS = {"coco": "AP", "crowdhuman": "Recall"}


def content(*more: dict[str, Any]) -> dict[str, Any]:
    """Two images of 64 × 48 px with an object each, and further annotations of the first."""
    box = {"category_id": 1, "iscrowd": 0}
    objects = [
        {**box, "image_id": 1, "bbox": [10, 10, 20, 20]},
        {**box, "image_id": 2, "bbox": [-5, 20, 40, 40]},
        *({**box, "image_id": 1, **entry} for entry in more),
    ]
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 64, "height": 48} for i in (1, 2)],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": [{"id": n, **entry} for n, entry in enumerate(objects, start=1)],
    }


def found_by_the_loader(data: CocoDetection) -> list[dict[str, Any]]:
    """A detection of every object that the loader gives."""
    results = []
    for record in (data.record(index) for index in range(len(data))):
        for x1, y1, x2, y2 in record.boxes.tolist():
            box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "score": 0.9}
            results.append({"image_id": record.image_id, "category_id": 1, **box})
    return results


def evaluator(name: str) -> Any:
    return choose_evaluator(
        load_cfg(R50, ["TEST.EVALUATOR", name, "MODEL.OneNet.NUM_CLASSES", "1"])
    )


@pytest.mark.parametrize("name", EVALUATORS)
@pytest.mark.parametrize("box", LEFT_OUT.values(), ids=LEFT_OUT)
def test_what_the_loader_leaves_out_is_not_to_be_found(tmp_path, box, name):
    source = write(tmp_path, content({"bbox": box}))
    results = found_by_the_loader(CocoDetection(source))
    assert len(results) == 2
    metrics = score(evaluator(name), read_truth(source.json_file), results)
    assert metrics[EVALUATORS[name]] == pytest.approx(100)
    assert metrics["duplicates"] == 1


@pytest.mark.parametrize("name", EVALUATORS)
@pytest.mark.parametrize("box", LEFT_OUT.values(), ids=LEFT_OUT)
def test_crowds_that_are_left_out_hide_no_detection(tmp_path, box, name):
    false_alarm = {"image_id": 1, "category_id": 1, "bbox": [50, 3, 14, 9], "score": 1.0}
    scored = []
    for more in ((), ({"bbox": box, "iscrowd": 1},)):
        source = write(tmp_path, content(*more))
        results = [false_alarm, *found_by_the_loader(CocoDetection(source))]
        scored.append(score(evaluator(name), read_truth(source.json_file), results))
    assert scored[0] == pytest.approx(scored[1], nan_ok=True)


def test_the_loader_and_the_evaluation_decide_alike(tmp_path):
    corners = [-10, -1e-9, 0, 63.9999999, 64, 1e8, -1e308, NAN]
    lengths = [-1, 0, 1e-9, 5, 1e-300, 1e38, 1e308, INF]
    boxes = [[x, 3, w, 4] for x, w in itertools.product(corners, lengths)]
    boxes += [[3, y, 4, h] for y, h in itertools.product(corners, lengths)]
    source = write(tmp_path, content(*({"bbox": box} for box in boxes)))
    truth = read_truth(source.json_file)
    of_first = [a["bbox"] for a in truth["annotations"] if a["image_id"] == 1]
    assert len(CocoDetection(source).record(0).boxes) == len(of_first)
    assert [-10, 3, 1e38, 4] in of_first and [63.9999999, 3, 5, 4] not in of_first


def test_the_given_content_is_left_as_it_is(tmp_path):
    given = content({"bbox": [3, 3, 0, 5]})
    assert len(counted(given)["annotations"]) == 2
    assert given == content({"bbox": [3, 3, 0, 5]})


@pytest.mark.parametrize(
    "annotations",
    [None, [], [{"bbox": [3, 3, 0, 5]}], [{"bbox": [3, 3, 5, 5], "iscrowd": 1}]],
    ids=["missing", "empty", "left-out", "crowd"],
)
def test_without_an_object_there_is_nothing_to_score(tmp_path, caplog, annotations):
    given = content(*(annotations or []))
    given["annotations"] = given["annotations"][2:]
    if annotations is None:
        del given["annotations"]
    source = write(tmp_path, given)
    truth = read_truth(source.json_file)
    assert not has_objects(truth)
    result = {"image_id": 1, "category_id": 1, "bbox": [1.0, 2, 3, 4], "score": 0.5}
    caplog.set_level("INFO")
    file = tmp_path / "new" / "results.json"
    assert report(evaluator("coco"), "mine", truth, [result], file) == {}
    assert strict(file.read_text()) == [result]
    assert "mine has no objects, so there is nothing to score" in caplog.text


def test_detections_that_are_not_finite_reach_no_evaluator(tmp_path, caplog):
    source = write(tmp_path, content())
    truth = read_truth(source.json_file)
    good = found_by_the_loader(CocoDetection(source))
    bad = [{**good[0], "score": NAN}, {**good[1], "bbox": [NAN, 1, 2, 3]}]
    file = Path(tmp_path / "results.json")
    for name, metric in EVALUATORS.items():
        chosen = evaluator(name)
        found = report(chosen, "mine", truth, [*bad, *good], file)
        assert found[f"{chosen.group}/{metric}"] == pytest.approx(100)
        assert strict(file.read_text()) == good
    assert "left out: detections with NaN or infinity (2, in 2 images" in caplog.text
