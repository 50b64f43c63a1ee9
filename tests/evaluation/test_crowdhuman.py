"""CrowdHuman's metrics compared with the official code's numbers and with cases counted by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from helpers import golden
from helpers.project import load_script
from PIL import Image

from onenet.evaluation.crowdhuman import FALSE, IGNORED, TRUE, evaluate_crowdhuman, match, summarize


def boxes(*rows):
    return np.array(rows, dtype=np.float64).reshape(-1, 4)


def truth(annotations, images=1, width=100, height=100):
    sizes = {"width": width, "height": height}
    return {
        "images": [{"id": i, **sizes} for i in range(images)],
        "annotations": [{"image_id": 0, **a} for a in annotations],
        "categories": [{"id": 1, "name": "person"}],
    }


def found(box, score=1.0, image=0):
    return {"image_id": image, "category_id": 1, "bbox": box, "score": score}


def test_the_goldens(tmp_path):
    """From the annotation file to the metrics, through the converter."""
    records = [
        [json.loads(line) for line in (golden.FOLDER / f"crowdhuman_{part}.odgt").open()]
        for part in ("gt", "dt")
    ]
    for record in records[0]:
        size = (record["width"], record["height"])
        Image.new("L", size).save(tmp_path / f"{record['ID']}.jpg")
    tool = load_script("tools/convert_to_coco.py")
    content = tool.read_odgt(golden.FOLDER / "crowdhuman_gt.odgt", tmp_path).content
    ids = {image["file_name"].removesuffix(".jpg"): image["id"] for image in content["images"]}
    results = [
        found(d["box"], d["score"], ids[record["ID"]])
        for record in records[1]
        for d in record["dtboxes"]
    ]
    metrics = evaluate_crowdhuman(content, results)
    expected = json.loads((golden.FOLDER / "crowdhuman_metrics.json").read_text())
    assert metrics.ap == pytest.approx(expected["AP"], abs=1e-6)
    assert metrics.mmr == pytest.approx(expected["mMR"], abs=1e-6)
    assert metrics.recall == pytest.approx(expected["recall"], abs=1e-6)


A, B = [0, 0, 10, 10], [20, 0, 30, 10]
OFF_A = [0, 0, 10, 8]  # IoU 0.8 with A


@pytest.mark.parametrize(
    ("detections", "objects", "regions", "expected"),
    [
        ([A, B], [B, A], [], [TRUE, TRUE]),
        ([OFF_A, A], [A], [], [TRUE, FALSE]),  # the better score, not the better box
        ([[0, 0, 10, 5]], [A], [], [FALSE]),  # an IoU of one half is not enough
        ([[0, 0, 10, 5.01]], [A], [], [TRUE]),
        # The largest IoU first, then what is left.
        ([A, A, A], [OFF_A, A], [], [TRUE, TRUE, FALSE]),
        ([A, OFF_A], [OFF_A, A], [], [TRUE, TRUE]),
        # A region holds any number of detections of any size.
        ([[1, 1, 3, 3], [5, 5, 7, 7], B], [], [A], [IGNORED, IGNORED, FALSE]),
        ([[0, 0, 10, 20]], [], [A], [FALSE]),  # half of it is not enough
        # Objects come before regions; the second detection of an object lies in a region.
        ([A, A], [A], [A], [TRUE, IGNORED]),
        ([A], [], [], [FALSE]),
        ([], [A], [B], []),
        ([[5, 5, 5, 5]], [A], [A], [FALSE]),  # nothing lies anywhere
    ],
)
def test_match(detections, objects, regions, expected):
    outcome = match(boxes(*detections), boxes(*objects), boxes(*regions))
    assert outcome.tolist() == expected


def test_metrics_by_hand():
    metrics = summarize(np.array([True, False, True]), objects=4, images=2)
    # Recall 1/4, 1/4, 1/2; precision 1, 1/2, 2/3; false positives per image 0, 1/2, 1/2.
    assert metrics.ap == pytest.approx(1 / 4 * (1 / 2 + 2 / 3) / 2)
    # Seven of the nine points have 1/2 or less; the others take the last miss rate.
    assert metrics.mmr == pytest.approx((3 / 4) ** (7 / 9) * (1 / 2) ** (2 / 9))
    assert metrics.recall == 1 / 2
    assert metrics.percent() == pytest.approx(
        {"AP": 100 * metrics.ap, "mMR": 100 * metrics.mmr, "Recall": 50}
    )


def test_no_detection_and_no_object():
    nothing = summarize(np.zeros(0, dtype=bool), objects=3, images=1)
    assert (nothing.ap, nothing.mmr, nothing.recall) == (0, 1, 0)
    undefined = summarize(np.array([False]), objects=0, images=1)
    assert all(map(math.isnan, undefined.percent().values()))
    assert all(map(math.isnan, evaluate_crowdhuman(truth([]), []).percent().values()))


@pytest.mark.filterwarnings("error")
def test_perfect_detections():
    annotations = [{"bbox": [10 * i, 0, 8, 8]} for i in range(5)]
    results = [found(a["bbox"], score=i / 5) for i, a in enumerate(annotations)]
    metrics = evaluate_crowdhuman(truth(annotations), results)
    # The area begins at the first detection's recall.
    assert (metrics.ap, metrics.mmr, metrics.recall) == (pytest.approx(4 / 5), 0, 1)


def test_boxes_are_clipped_to_the_image():
    annotations = [{"bbox": [-50, 20, 100, 200]}]  # 50 × 80 of it in the image
    inside = found([0, 20, 50, 80])
    assert evaluate_crowdhuman(truth(annotations), [inside]).recall == 1
    assert evaluate_crowdhuman(truth(annotations, 1, 500, 500), [inside]).recall == 0


def test_crowds_are_neither_missed_nor_punished():
    annotations = [{"bbox": [0, 0, 20, 40]}, {"bbox": [50, 50, 50, 50], "iscrowd": 1}]
    hit, inside, outside = (
        found([0, 0, 20, 40], 0.5), found([60, 60, 10, 10], 0.9), found([0, 60, 10, 10], 0.8)
    )  # fmt: skip
    clean = evaluate_crowdhuman(truth(annotations), [hit])
    assert clean.recall == 1
    assert evaluate_crowdhuman(truth(annotations), [inside, hit]) == clean
    assert evaluate_crowdhuman(truth(annotations), [outside, hit]).mmr > clean.mmr


@pytest.mark.parametrize(("images", "mmr"), [(2, (1 / 2) ** (2 / 9)), (200, 1 / 2)])
def test_a_false_alarm_in_an_empty_image(images, mmr):
    """1/2 or 1/200 false positives per image come before the hit of one of two objects."""
    annotations = [{"bbox": [0, 0, 20, 40]}, {"bbox": [50, 0, 20, 40]}]
    results = [found([0, 0, 20, 40], 0.5), found([0, 0, 20, 40], 0.9, image=1)]
    metrics = evaluate_crowdhuman(truth(annotations, images), results)
    assert metrics.mmr == pytest.approx(mmr)
    assert metrics.recall == 1 / 2


def test_the_order_of_annotations_and_results_does_not_matter():
    rng = np.random.default_rng(3)
    annotations = [
        {"image_id": int(i), "bbox": [*rng.uniform(0, 60, 2), *rng.uniform(10, 40, 2)],
         "iscrowd": int(rng.random() < 0.2)}
        for i in rng.integers(0, 5, 40)
    ]  # fmt: skip
    results = [
        found((np.array(a["bbox"]) + rng.normal(0, 3, 4)).tolist(), rng.random(), a["image_id"])
        for a in annotations
        for _ in range(2)
    ]
    expected = evaluate_crowdhuman(truth(annotations, 5), results)
    shuffled = [results[i] for i in rng.permutation(len(results))]
    assert evaluate_crowdhuman(truth(annotations[::-1], 5), shuffled) == expected
    assert 0 < expected.ap < 1 and 0 < expected.mmr < 1
