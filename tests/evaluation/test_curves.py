"""F1 with its best threshold, and calibration, against figures by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from onenet.evaluation.curves import calibration, score_curve


def curve(scores: list[float], true: list[int], objects: int):
    return score_curve(np.array(scores, float), np.array(true, bool), objects)


def test_precision_recall_and_f1_by_hand():
    found = curve([0.9, 0.8, 0.7, 0.6], [1, 0, 1, 0], 4)
    assert found.precision.tolist() == [1, 1 / 2, 2 / 3, 2 / 4]
    assert found.recall.tolist() == [1 / 4, 1 / 4, 2 / 4, 2 / 4]
    assert found.f1 == pytest.approx([2 / 5, 2 / 6, 4 / 7, 4 / 8])
    assert found.best_threshold == 0.65
    assert found.at(0.65) == pytest.approx((2 / 3, 1 / 2, 4 / 7))
    assert found.at(0.7) == found.at(0.65) and found.at(0.0)[1] == 0.5
    assert math.isnan(found.at(0.95)[0]) and found.at(0.95)[1:] == (0, 0)


def test_detections_of_one_score_count_together():
    found = curve([0.9, 0.5, 0.5, 0.5], [1, 1, 0, 0], 2)
    assert found.scores.tolist() == [0.9, 0.5]
    assert found.f1 == pytest.approx([2 / 3, 4 / 6])
    # Both are as good; the higher threshold gives fewer detections.
    assert found.best_threshold == 0.7


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([0.9], 0.68),
        ([0.123456, 0.123454], 0.123455),
        ([1.0, 1.0 - 2**-24], 1.0),
        ([0.004, 0.0039], 0.00395),
        ([1e-30], 7.5e-31),
    ],
)
def test_the_threshold_is_short_and_parts_the_same_detections(scores, expected):
    found = curve(scores, [1] + [0] * (len(scores) - 1), 1)
    best = found.best_threshold
    assert best == pytest.approx(expected, rel=1e-6) and best <= scores[0]
    assert all(score < best for score in scores[1:])


def test_no_threshold_without_a_detection_that_is_right():
    for found in (curve([], [], 3), curve([0.9], [0], 3), curve([0.9], [0], 0), curve([], [], 0)):
        assert found.best_threshold is None
    assert curve([], [], 3).at(0.5)[2] == 0 and math.isnan(curve([], [], 0).at(0.5)[2])


def test_calibration_by_hand():
    scores, true = [0.05, 0.15, 0.15, 0.95, 1.0], [0, 1, 0, 1, 1]
    found = calibration(np.array(scores), np.array(true, bool))
    assert found.counts.tolist() == [1, 2, 0, 0, 0, 0, 0, 0, 0, 2]
    assert found.precision[[0, 1, 9]].tolist() == [0, 0.5, 1]
    assert found.scores[[0, 1, 9]] == pytest.approx([0.05, 0.15, 0.975])
    assert np.isnan(found.precision[2:9]).all()
    # 1 · |0 - 0.05|, 2 · |0.5 - 0.15| and 2 · |1 - 0.975|, by 5.
    assert found.error == pytest.approx((0.05 + 0.7 + 0.05) / 5)


def test_calibration_needs_probabilities():
    assert calibration(np.array([0.5, 1.2]), np.array([True, False])) is None
    assert math.isnan(calibration(np.array([]), np.array([], bool)).error)
