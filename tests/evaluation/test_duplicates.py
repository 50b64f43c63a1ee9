"""Which detections are duplicates, compared with cases worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from onenet.evaluation.duplicates import (
    detections_per_object,
    duplicates_line,
    find_duplicates,
    objects_of,
)


def box(x, y, width=10.0, height=10.0):
    return [x, y, x + width, y + height]


def objects(found, truth, **options):
    """The object of each detection; both are given as (label, box) pairs."""

    def arrays(pairs):
        boxes = torch.tensor([b for _, b in pairs]).reshape(-1, 4)
        return boxes, torch.tensor([label for label, _ in pairs], dtype=torch.int64)

    return objects_of(*arrays(found), *arrays(truth), **options).tolist()


def test_a_detection_is_of_the_object_that_it_overlaps_most():
    truth = [(0, box(0, 0)), (0, box(4, 0)), (0, box(100, 100))]
    # IoU with the first two: 8/12 and 8/12 (the first of equals); 7/13 and 9/11; 10/10 and 6/14.
    found = [(0, box(2, 0)), (0, box(3, 0)), (0, box(0, 0))]
    assert objects(found, truth) == [0, 1, 0]


def test_a_detection_of_another_class_or_of_little_overlap_is_of_no_object():
    truth = [(0, box(0, 0)), (1, box(2, 0))]
    assert objects([(2, box(0, 0)), (1, box(0, 0)), (0, box(0, 0))], truth) == [-1, 1, 0]
    # An IoU of exactly 1/2, slightly less, and another threshold.
    assert objects([(0, box(0, 0, 5)), (0, box(0, 0, 4.99))], truth) == [0, -1]
    assert objects([(0, box(0, 0, 5))], truth, min_iou=0.6) == [-1]


def test_no_detections_no_objects_and_boxes_without_area():
    assert objects([], [(0, box(0, 0))]) == []
    assert objects([(0, box(0, 0))], []) == [-1]
    assert objects([], []) == []
    # Two equal points have no IoU, which must not hide the object beside them.
    truth = [(0, box(5, 5, 0, 0)), (0, box(0, 0))]
    assert objects([(0, box(5, 5, 0, 0)), (0, box(0, 0))], truth) == [-1, 1]


def test_all_but_the_first_detection_of_an_object_are_duplicates():
    found = find_duplicates(torch.tensor([2, -1, 0, 2, -1, 2, 0, 1]))
    assert found.tolist() == [False, False, False, True, False, True, True, False]
    assert find_duplicates(torch.tensor([], dtype=torch.int64)).shape == (0,)


def annotation(image, category, x, y, **more):
    return {"image_id": image, "category_id": category, "bbox": [x, y, 10.0, 10.0], **more}


def result(image, category, x, y, score):
    return {**annotation(image, category, x, y), "score": score}


def truth():
    """Four objects and a crowd region."""
    return [
        annotation(1, 7, 0, 0),
        annotation(1, 9, 50, 0),
        annotation(2, 7, 0, 0),
        annotation(2, 7, 80, 80, iscrowd=1),
        annotation(3, 7, 0, 0),
    ]


def test_detections_per_object_over_a_data_set():
    three_of_two = [result(1, 7, 0, 1, 0.5), result(1, 7, 1, 0, 0.4), result(1, 9, 50, 1, 0.9)]
    assert detections_per_object(truth(), three_of_two) == pytest.approx(3 / 2)
    # The fourth best counts, here for an object of another image; worse ones do not.
    fourth = result(3, 7, 2, 0, 0.3)
    assert detections_per_object(truth(), [*three_of_two, fourth]) == pytest.approx(4 / 3)
    worse = [result(1, 7, 0, 0, 0.29), result(2, 7, 0, 0, 0.1), result(2, 7, 0, 0, 0.1)]
    everything = [*worse, *three_of_two, fourth]
    assert detections_per_object(truth(), everything) == pytest.approx(4 / 3)
    assert detections_per_object(truth(), everything[::-1]) == pytest.approx(4 / 3)


def test_detections_of_nothing_take_a_place_and_do_not_count():
    nothing = [
        result(1, 9, 0, 0, 0.9),  # another class
        result(2, 7, 80, 80, 0.9),  # a crowd region
        result(4, 7, 0, 0, 0.9),  # an image without objects
    ]
    of_one = [result(3, 7, 0, 0, 0.8), result(3, 7, 0, 0, 0.7)]
    assert detections_per_object(truth(), nothing[:2] + of_one) == 2
    assert detections_per_object(truth(), nothing + of_one) == 1
    # An IoU of 3 / 17.
    aside = [result(2, 7, 7, 0, 0.95), result(2, 7, 0, 0, 0.9)]
    assert detections_per_object(truth(), aside) == 1
    assert detections_per_object(truth(), aside, min_iou=0.15) == 2


def test_without_a_found_object_there_is_no_number():
    assert math.isnan(detections_per_object(truth(), []))
    assert math.isnan(detections_per_object([], [result(1, 7, 0, 0, 0.9)]))
    assert math.isnan(detections_per_object(truth(), [result(1, 9, 0, 0, 0.9)]))


def test_the_line_of_the_log():
    assert duplicates_line(4 / 3) == "duplicates: 1.33 detections per matched object"
    assert duplicates_line(math.nan) == "duplicates: no object was found"
