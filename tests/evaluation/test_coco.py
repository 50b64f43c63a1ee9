"""COCO AP compared with pycocotools, and the tables that hold it."""

from __future__ import annotations

import contextlib
import copy
import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from helpers.coco_example import perfect
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from onenet.evaluation.coco import METRICS, average_precision, unique_names
from onenet.evaluation.report import tables
from onenet.evaluation.results import to_coco
from onenet.structures import Detections

NAMES = {7: "cat", 2: "dog", 50: "bird"}  # by category id; labels follow the sorted ids
SIZES = {"small": 20.0, "medium": 60.0, "large": 150.0}  # sides of boxes, px


def content(annotations: list[dict[str, Any]], images: int = 6) -> dict[str, Any]:
    return {
        "images": [
            {"id": i, "file_name": f"{i}.png", "width": 400, "height": 400} for i in range(images)
        ],
        "categories": [{"id": k, "name": name} for k, name in NAMES.items()],
        "annotations": [{"id": n, **a} for n, a in enumerate(annotations, start=1)],
    }


def random_truth(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    annotations = []
    for image in range(5):  # image 5 has nothing
        for _ in range(rng.integers(1, 6)):
            w, h = rng.choice(list(SIZES.values())) * rng.uniform(0.7, 1.3, 2)
            x, y = rng.uniform(0, 200, 2)
            annotations.append(
                {
                    "image_id": image,
                    "category_id": int(rng.choice([7, 2])),
                    "bbox": [float(v) for v in (x, y, w, h)],
                    "area": float(w * h * rng.uniform(0.5, 1)),  # a mask's, less than the box's
                    "iscrowd": int(rng.random() < 0.15),
                }
            )
    return content(annotations)


def random_results(truth: dict[str, Any], seed: int) -> list[dict[str, Any]]:
    """Jittered truth with duplicates, wrong classes and noise; more than 100 results per image."""
    rng = np.random.default_rng(seed)
    results = []
    for a in truth["annotations"]:
        for _ in range(rng.integers(0, 4)):
            category = a["category_id"] if rng.random() < 0.8 else 50
            box = np.array(a["bbox"]) * rng.uniform(0.8, 1.2, 4)
            results.append((a["image_id"], category, box))
    for _ in range(700):
        box = np.concatenate([rng.uniform(0, 300, 2), rng.uniform(5, 200, 2)])
        results.append((int(rng.integers(6)), int(rng.choice(list(NAMES))), box))
    scores = rng.random(len(results)).round(3)  # some are equal
    return [
        {"image_id": i, "category_id": k, "bbox": box.tolist(), "score": float(s)}
        for (i, k, box), s in zip(results, scores, strict=True)
    ]


def pycocotools_precision(truth: dict[str, Any], results: list[dict[str, Any]]) -> np.ndarray:
    """Precision, thresholds × recalls × classes × areas, for the best 100 detections per image."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(copy.deepcopy(results)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][..., -1]
    known = precision[..., 0][precision[..., 0] > -1]
    assert evaluation.stats[0] == known.mean()
    return precision


def mean(precision: np.ndarray) -> float:
    known = precision[precision > -1]
    return 100 * known.mean() if known.size else math.nan


@pytest.mark.parametrize("seed", range(4))
def test_ap_is_that_of_pycocotools(tmp_path, seed):
    truth = random_truth(seed)
    results = random_results(truth, seed + 100)
    metrics = average_precision(truth, results)
    precision = pycocotools_precision(truth, results)
    expected = {
        "AP": mean(precision[..., 0]),
        "AP50": mean(precision[0, ..., 0]),
        "AP75": mean(precision[5, ..., 0]),
        "APs": mean(precision[..., 1]),
        "APm": mean(precision[..., 2]),
        "APl": mean(precision[..., 3]),
        # pycocotools sorts the categories by id.
        "AP-dog": mean(precision[:, :, 0, 0]),
        "AP-cat": mean(precision[:, :, 1, 0]),
        "AP-bird": math.nan,
    }
    assert 0 < expected["AP"] < 100
    assert metrics == pytest.approx(expected, abs=1e-9, nan_ok=True)


def one_of_each() -> dict[str, Any]:
    """A dog of every size and a small cat; no bird."""
    boxes = [(2, side) for side in SIZES.values()] + [(7, 25.0)]
    return content(
        [
            {"image_id": i, "category_id": k, "bbox": [10.0, 20.0, s, s], "area": s * s,
             "iscrowd": 0}
            for i, (k, s) in enumerate(boxes)
        ]
    )  # fmt: skip


def test_perfect_detections_give_100_and_a_class_without_truth_nan(tmp_path):
    truth = one_of_each()
    metrics = average_precision(truth, perfect(truth))
    assert math.isnan(metrics.pop("AP-bird"))
    assert metrics == pytest.approx(dict.fromkeys(metrics, 100.0))
    assert set(METRICS) < set(metrics)


def test_no_detection_gives_0_and_nan_where_there_is_nothing_to_find(tmp_path):
    truth = one_of_each()
    truth["annotations"] = truth["annotations"][1:2]  # one dog of medium size
    metrics = average_precision(truth, [])
    nothing = {"APs", "APl", "AP-cat", "AP-bird"}
    assert {k for k, v in metrics.items() if math.isnan(v)} == nothing
    assert {v for k, v in metrics.items() if k not in nothing} == {0.0}


def test_a_wrong_class_is_no_detection(tmp_path):
    truth = one_of_each()
    wrong = [{**r, "category_id": 50} for r in perfect(truth)]
    assert average_precision(truth, wrong)["AP"] == 0.0


def test_area_and_iscrowd_may_be_missing(tmp_path):
    truth = one_of_each()
    full = average_precision(truth, perfect(truth)[1:])
    for annotation in truth["annotations"]:
        del annotation["area"], annotation["iscrowd"]
    bare = average_precision(truth, perfect(truth)[1:])
    assert bare == pytest.approx(full, nan_ok=True)
    assert bare["APs"] == pytest.approx(50.0)  # of the dog and the cat, one is found


def test_crowds_are_neither_missed_nor_punished(tmp_path):
    truth = one_of_each()
    truth["annotations"].append(
        {"id": 99, "image_id": 5, "category_id": 2, "bbox": [0.0, 0.0, 200.0, 200.0],
         "area": 40000.0, "iscrowd": 1}
    )  # fmt: skip
    assert average_precision(truth, perfect(truth))["AP-dog"] == pytest.approx(100)
    inside = {"image_id": 5, "category_id": 2, "bbox": [50.0, 50.0, 60.0, 60.0], "score": 2.0}
    assert average_precision(truth, [inside, *perfect(truth)])["AP-dog"] == pytest.approx(100)
    outside = {**inside, "bbox": [250.0, 250.0, 60.0, 60.0]}
    assert average_precision(truth, [outside, *perfect(truth)])["AP-dog"] < 100


def test_more_detections_than_100_count_where_they_are_asked_for(tmp_path):
    truth = content([{"image_id": 0, "category_id": 2, "bbox": [0.0, 0.0, 50.0, 50.0]}])
    wrong = {"image_id": 0, "category_id": 2, "bbox": [200.0, 200.0, 50.0, 50.0], "score": 0.9}
    results = [wrong] * 100 + [{**perfect(truth)[0], "score": 0.1}]
    assert average_precision(truth, results, 100)["AP"] == 0
    assert average_precision(truth, results, 300)["AP"] == pytest.approx(100 / 101)
    # COCO's own AP considers 100 detections, even if the model gives fewer.
    assert average_precision(truth, results[50:], 10)["AP"] == pytest.approx(100 / 51)


def test_the_given_results_are_left_as_they_are(tmp_path):
    truth = one_of_each()
    results = perfect(truth)
    before = copy.deepcopy(results)
    average_precision(truth, results)
    assert results == before


def test_results_have_coco_boxes_and_category_ids():
    detections = Detections(
        torch.tensor([[10.0, 20.0, 40.0, 80.0], [0.0, 0.0, 1.0, 2.0]]),
        torch.tensor([0.75, 0.5]),
        torch.tensor([2, 0]),
    )
    rows = to_coco(42, detections, [2, 7, 50])
    assert rows == [
        {"image_id": 42, "category_id": 50, "bbox": [10.0, 20.0, 30.0, 60.0], "score": 0.75},
        {"image_id": 42, "category_id": 2, "bbox": [0.0, 0.0, 1.0, 2.0], "score": 0.5},
    ]
    assert detections.boxes[0].tolist() == [10.0, 20.0, 40.0, 80.0]


def test_tables_show_every_figure_by_its_name():
    metrics = {name: 10.0 + i for i, name in enumerate(METRICS)}
    metrics |= {"AP-1e3": 1.234, "AP-007": math.nan, "AP-cat": 5, "AP-d": 6.0, "duplicates": 1.5}
    overall, by_class, line = tables(metrics).split("\n\n")
    assert line == "duplicates: 1.50 detections per matched object"
    header, _, values = overall.splitlines()
    assert [c.strip() for c in header.split("|")[1:-1]] == list(METRICS)
    assert [float(c) for c in values.split("|")[1:-1]] == [10, 11, 12, 13, 14, 15]
    cells = [[c.strip() for c in line.split("|")[1:-1]] for line in by_class.splitlines()]
    assert cells[0] == ["class", "AP"] * 3
    assert cells[2] == ["1e3", "1.23", "007", "nan", "cat", "5.00"]
    assert cells[3] == ["d", "6.00", "", "", "", ""]


def test_one_class_gives_one_column():
    metrics = dict.fromkeys(METRICS, 1.0) | {"AP-only": 2.0, "duplicates": 1.0}
    assert tables(metrics).splitlines()[-3].replace(" ", "") == "|only|2.00|"


def test_classes_of_one_name_keep_a_metric_each():
    truth = one_of_each()
    for category in truth["categories"]:
        category["name"] = "dog"
    metrics = average_precision(truth, perfect(truth)[:3])
    assert metrics["AP-dog (id 2)"] == pytest.approx(100) and metrics["AP-dog (id 7)"] == 0
    assert math.isnan(metrics["AP-dog (id 50)"])
    assert len(metrics) == len(METRICS) + 3


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["a", "b"], ["a", "b"]),
        (["a", "b", "a"], ["a (id 0)", "b", "a (id 2)"]),
        (["a", "a", "a (id 0)"], ["a (id 0) (id 0)", "a (id 1)", "a (id 0) (id 2)"]),
        ([], []),
    ],
)
def test_names_of_classes_are_unique(names, told):
    assert unique_names([{"id": k, "name": name} for k, name in enumerate(names)]) == told
