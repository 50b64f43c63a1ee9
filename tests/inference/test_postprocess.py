"""Top-k, class-wise NMS, and boxes in the pixels of the original image."""

from __future__ import annotations

import pytest
import torch

from onenet import Detections, Predictions
from onenet.inference.postprocess import detect, to_image, top_k

close = torch.testing.assert_close


def predictions(logits, boxes):
    logits, boxes = torch.tensor(logits), torch.tensor(boxes, dtype=torch.float32)
    return Predictions(logits, boxes, boxes[0], torch.zeros(boxes.shape[1], dtype=torch.int64))


def detections(*boxes):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    labels = torch.arange(len(boxes))
    return Detections(boxes, 1 - labels / 10, labels)


@pytest.mark.parametrize("k", [1, 7, 20, 41, 300])
@pytest.mark.parametrize("shape", [(2, 40, 5), (3, 40, 1), (1, 1, 5), (1, 3, 90)])
def test_top_k_is_exact(shape, k):
    """Against the plain top-k of all entries; k may exceed N and N · K."""
    batch, samples, classes = shape
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(k))
    best, row, column = top_k(logits, k)
    count = min(k, samples * classes)
    expected, flat = logits.flatten(1).topk(count, dim=1)
    assert best.shape == row.shape == column.shape == (batch, count)
    assert torch.equal(best, expected)
    assert torch.equal(row * classes + column, flat)


def test_top_k_takes_many_classes_of_one_sample():
    """The second-best sample of all must not push out a sample's second class."""
    logits = torch.tensor([[[9.0, 8.0, 7.0], [1.0, 0.0, 2.0], [6.0, -1.0, -2.0]]])
    best, row, column = top_k(logits, 3)
    assert best.tolist() == [[9.0, 8.0, 7.0]]
    assert row.tolist() == [[0, 0, 0]] and column.tolist() == [[0, 1, 2]]


def test_detect_by_hand():
    given = predictions(
        [[[0.0, -9.0], [-9.0, 2.0]], [[-1.0, 5.0], [-9.0, -9.0]]],
        [[[0, 0, 1, 1], [2, 2, 3, 3]], [[4, 4, 5, 5], [6, 6, 7, 7]]],
    )
    first, second = detect(given, 2)
    assert first.labels.tolist() == [1, 0] and second.labels.tolist() == [1, 0]
    assert first.boxes.tolist() == [[2, 2, 3, 3], [0, 0, 1, 1]]
    assert second.boxes.tolist() == [[4, 4, 5, 5]] * 2
    close(first.scores, torch.tensor([2.0, 0.0]).sigmoid())


def test_fewer_candidates_than_k():
    (found,) = detect(predictions([[[0.0, 1.0]]], [[[0, 0, 1, 1]]]), 100)
    assert found.labels.tolist() == [1, 0] and len(found) == 2


def test_one_class():
    logits = [[[0.0], [3.0], [1.0]]]
    (found,) = detect(predictions(logits, [[[0, 0, 1, 1], [1, 1, 2, 2], [2, 2, 3, 3]]]), 2)
    assert found.labels.tolist() == [0, 0]
    assert found.boxes[:, 0].tolist() == [1, 2]


def test_an_image_of_a_batch_is_detected_as_alone():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 9, 4, generator=generator)
    boxes = torch.rand(3, 9, 4, generator=generator).cumsum(dim=-1)
    levels = torch.zeros(9, dtype=torch.int64)
    together = detect(Predictions(logits, boxes, boxes[0], levels), 5, 0.5)
    for i, found in enumerate(together):
        one = slice(i, i + 1)
        (alone,) = detect(Predictions(logits[one], boxes[one], boxes[0], levels), 5, 0.5)
        assert torch.equal(found.boxes, alone.boxes) and torch.equal(found.labels, alone.labels)
        assert torch.equal(found.scores, found.scores.sort(descending=True).values)


BOXES = [[[0, 0, 10, 10], [0, 0, 10, 11], [50, 50, 60, 60]]]
LOGITS = [[[2.0, 0.5], [1.0, -8.0], [0.0, -9.0]]]


def test_without_nms_duplicates_stay():
    (found,) = detect(predictions(LOGITS, BOXES), 4)
    assert found.labels.tolist() == [0, 0, 1, 0]


def test_nms_drops_duplicates_within_a_class_only():
    (found,) = detect(predictions(LOGITS, BOXES), 4, nms_iou=0.5)
    assert found.labels.tolist() == [0, 1, 0]
    assert found.boxes.tolist() == [[0, 0, 10, 10], [0, 0, 10, 10], [50, 50, 60, 60]]
    close(found.scores, torch.tensor([2.0, 0.5, 0.0]).sigmoid())


def test_nms_keeps_classes_apart_where_boxes_leave_the_image():
    """Class 1's box, moved by the largest coordinate + 1, would cover class 0's."""
    given = predictions([[[2.0, -9.0], [-9.0, 1.0]]], [[[0, 0, 100, 100], [-101, -101, -1, -1]]])
    (found,) = detect(given, 2, nms_iou=0.5)
    assert found.labels.tolist() == [0, 1]
    assert found.boxes.tolist() == [[0, 0, 100, 100], [-101, -101, -1, -1]]


def test_to_image_scales_each_axis_on_its_own():
    found = to_image(detections([1, 2, 3, 4]), (10, 20), (30, 40))
    assert found.boxes.tolist() == [[2, 6, 6, 12]]


def test_to_image_clips_to_the_new_size():
    found = to_image(detections([-3, -1, 25, 12]), (10, 20), (20, 40))
    assert found.boxes.tolist() == [[0, 0, 40, 20]]


def test_to_image_drops_what_has_no_area_with_its_score_and_label():
    found = to_image(
        detections([5, 5, 5, 9], [0, 0, 4, 4], [-4, 0, 0, 4], [21, 0, 30, 4], [0, 7, 4, 7]),
        (10, 20),
        (10, 20),
    )
    assert found.boxes.tolist() == [[0, 0, 4, 4]]
    assert found.labels.tolist() == [1]
    close(found.scores, torch.tensor([0.9]))


def test_to_image_of_nothing():
    found = to_image(detections(), (10, 20), (30, 40))
    assert len(found) == 0 and found.boxes.shape == (0, 4)
