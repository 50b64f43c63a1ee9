"""The figures of a report: counts by hand, and curves and matrices against libraries' own."""

from __future__ import annotations

import math
from copy import deepcopy

import numpy as np
import pytest
import supervision as sv
import torch
from helpers.report_example import RESULTS, TRUTH

from onenet.evaluation.analysis import IOUS, SIZES, analyse
from onenet.evaluation.coco import average_precision
from onenet.evaluation.duplicates import find_duplicates, objects_of
from onenet.evaluation.matching import Kind, match


def test_every_kind_by_hand():
    kinds = match(TRUTH, RESULTS).kinds(0.4)
    names = "FOUND FOUND DUPLICATE CONFUSED IGNORED FALSE BELOW".split()
    assert [Kind(kind).name for kind in kinds.detections] == names
    assert [Kind(kind).name for kind in kinds.objects] == "FOUND MISSED CONFUSED FOUND".split()
    # Rows and columns: cat, dog, and nothing.
    assert kinds.confusion.tolist() == [[1, 0, 1], [1, 1, 0], [1, 1, 0]]


def test_figures_by_hand():
    analysis = analyse(TRUTH, RESULTS)
    # From 0.85 on, 2 detections find 2 of 4 objects; from 0.1 on, 6 that count find 3.
    assert analysis.curve.at(0.85) == (1, 0.5, pytest.approx(4 / 6))
    assert analysis.curve.at(0.05) == (0.5, 0.75, pytest.approx(6 / 10))
    assert analysis.best_threshold == 0.85
    assert [curve.best_threshold for curve in analysis.curves] == [0.88, 0.7]
    assert analysis.counts() == {
        "found": 2, "confused": 0, "duplicate": 0, "false": 0, "ignored": 0, "missed": 2
    }  # fmt: skip
    assert [row["missed"] for row in analysis.counts_by_class()] == [1, 1]
    assert analysis.worst_images(5) == [0]  # the second has no error
    # Scores 0.95, 0.9, 0.8, 0.7, 0.5 and 0.1: 0.9 … 1 holds two that are right.
    gaps = 2 * (1 - 0.925), 0.8, 0.7, 0.5, 1 - 0.1
    assert analysis.calibration().error == pytest.approx(sum(gaps) / 6)


def test_found_confused_and_missed_objects_are_all_objects():
    analysis = analyse(*made_up(crowds=True))
    kinds = analysis.kinds
    assert kinds.confusion[:-1].sum() == len(kinds.objects)
    counts = analysis.counts()
    kept = (analysis.matching.scores >= analysis.threshold).sum()
    assert sum(counts.values()) - counts["missed"] == kept
    found, objects = counts["found"], len(kinds.objects)
    detections = kept - counts["ignored"]
    assert counts["ignored"] and analysis.curve.at(analysis.threshold) == pytest.approx(
        (found / detections, found / objects, 2 * found / (objects + detections))
    )


def test_duplicates_are_those_of_the_project():
    """Where no two objects of a class overlap, they are what find_duplicates finds."""
    truth, results = made_up(apart=True)
    matching = match(truth, results)
    kinds = matching.kinds(0.3)
    expected = 0
    for image in range(matching.image_count):
        rows = (matching.images == image) & (matching.scores >= 0.3)
        there = matching.object_images == image
        arrays = (
            matching.boxes[rows],
            matching.labels[rows],
            matching.object_boxes[there],
            matching.object_labels[there],
        )
        expected += int(find_duplicates(objects_of(*map(torch.from_numpy, arrays))).sum())
    assert expected > 10 and (kinds.detections == Kind.DUPLICATE).sum() == expected


def made_up(*, crowds: bool = False, apart: bool = False) -> tuple[dict, list[dict]]:
    """30 images with noisy detections of 5 classes; ``apart``: no two objects overlap."""
    rng = np.random.default_rng(4)
    images = [{"id": i, "file_name": f"{i}.png", "width": 200, "height": 200} for i in range(30)]
    annotations, results = [], []
    for image in images:
        for place in range(9):
            x, y = (60 * (place % 3), 60 * (place // 3)) if apart else rng.uniform(0, 140, 2)
            box = [float(x), float(y), *rng.uniform(20, 55, 2).tolist()]
            label = int(rng.integers(5))
            entry = {"id": len(annotations) + 1, "image_id": image["id"], "category_id": label}
            crowd = int(crowds and rng.random() < 0.1)
            area = box[2] * box[3]
            annotations.append({**entry, "bbox": box, "area": area, "iscrowd": crowd})
            for _ in range(rng.integers(3)):
                seen = label if rng.random() < 0.8 else int(rng.integers(5))
                moved = (np.array(box) + rng.normal(0, 3, 4)).clip(1).tolist()
                score = float(rng.beta(5, 3))
                results.append(
                    {"image_id": image["id"], "category_id": seen, "bbox": moved, "score": score}
                )
    categories = [{"id": k, "name": f"class {k}"} for k in range(5)]
    return {"images": images, "annotations": annotations, "categories": categories}, results


def test_precision_and_recall_are_faster_coco_evals():
    """At IoU 0.5, the curve of each class gives the precisions that AP50 averages."""
    truth, results = made_up(crowds=True)
    analysis = analyse(truth, results)
    recalls = np.linspace(0, 1, 101)
    for k, curve in enumerate(analysis.curves):
        best_from_here = np.maximum.accumulate(curve.precision[::-1])[::-1]
        at = np.searchsorted(curve.recall, recalls)
        expected = np.append(best_from_here, 0.0)[at]
        assert analysis.precision[0, :, k, 0] == pytest.approx(expected, abs=1e-9)


def test_ap_is_that_of_the_evaluation():
    truth, results = made_up(crowds=True)
    analysis, metrics = analyse(truth, results), average_precision(truth, results)
    assert analysis.ap() == metrics["AP"] and analysis.ap(iou=0.75) == metrics["AP75"]
    assert analysis.ap(size="medium") == metrics["APm"]
    assert analysis.ap(label=2) == metrics["AP-class 2"]
    assert np.mean([analysis.ap(iou=iou) for iou in IOUS]) == pytest.approx(metrics["AP"])
    assert math.isnan(analysis.ap(size=SIZES[3]))


def test_the_confusion_matrix_is_supervisions():
    """Without crowds, and without overlapping objects, for which its order of matching differs."""
    truth, results = made_up(apart=True)
    analysis = analyse(truth, results)
    m, threshold = analysis.matching, analysis.threshold
    targets, predictions = [], []
    for image in range(m.image_count):
        there, rows = m.object_images == image, m.images == image
        targets.append(np.column_stack([m.object_boxes[there], m.object_labels[there]]))
        predictions.append(np.column_stack([m.boxes[rows], m.labels[rows], m.scores[rows]]))
    matrix = sv.ConfusionMatrix.from_tensors(
        predictions, targets, analysis.class_names, conf_threshold=threshold, iou_threshold=0.5
    ).matrix
    table = analysis.kinds.confusion
    assert table[:-1, :-1].trace() > 50 and table[:-1, :-1].sum() > table[:-1, :-1].trace()
    assert (table.sum(axis=1) == matrix.sum(axis=1))[:-1].all()
    assert (table.diagonal() == matrix.diagonal()).all()
    assert (table[:, -1] == matrix[:, -1]).all()
    assert table[-1].sum() == matrix[-1].sum()


def test_no_detections_and_no_objects():
    nothing = analyse(TRUTH, [])
    assert nothing.best_threshold is None and nothing.threshold == 0.4
    assert nothing.counts()["missed"] == 4 and nothing.curve.at(0.4)[2] == 0
    empty = {**deepcopy(TRUTH), "annotations": []}
    useless = analyse(empty, RESULTS)
    assert useless.best_threshold is None and math.isnan(useless.curve.at(0.4)[2])
    assert useless.counts()["false"] == 6 and math.isnan(useless.ap())
    assert analyse(empty, []).counts()["false"] == 0
