"""The numbers of the original implementation: heads, costs, matches, losses, gradients, top-k."""

from __future__ import annotations

import pytest
import torch
from helpers import golden

from onenet import Criterion
from onenet.inference.postprocess import detect


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", golden.NAMES)
def test_heads(name):
    arrays = golden.load(f"head_{name}")
    head = golden.head(name, arrays)
    inputs = [arrays[f"input{i}"] for i in range(sum(k.startswith("input") for k in arrays))]
    with torch.inference_mode():
        predictions = head(inputs)
    assert_close(predictions.logits, golden.rows(arrays["logits"]))
    torch.testing.assert_close(
        predictions.boxes, golden.rows(arrays["boxes"]), rtol=1e-4, atol=1e-3
    )


@pytest.mark.parametrize("name", golden.NAMES)
def test_samples_of_heads_are_the_originals_points_and_anchors(name):
    arrays = golden.load(f"head_{name}")
    inputs = [arrays[f"input{i}"] for i in range(sum(k.startswith("input") for k in arrays))]
    predictions = golden.head(name, arrays)(inputs)
    expected = golden.predictions(golden.load(f"loss_{name}_predefined_all_minimum"))
    torch.testing.assert_close(predictions.samples, expected.samples)
    if name != "retinanet":  # the original gives its anchors no levels
        assert torch.equal(predictions.levels, expected.levels)


@pytest.mark.parametrize("matcher", golden.MATCHERS)
@pytest.mark.parametrize("costs", ["all", "location"])
@pytest.mark.parametrize("location", ["predicted", "predefined"])
@pytest.mark.parametrize("name", golden.NAMES)
def test_costs_matches_losses_and_gradients(name, location, costs, matcher):
    arrays = golden.load(f"loss_{name}_{location}_{costs}_{matcher}")
    predictions, targets = golden.predictions(arrays), golden.targets(arrays)
    match = golden.MATCHERS[matcher](
        location=golden.location_cost(name, location), class_weight=2.0 if costs == "all" else 0.0
    )
    criterion = Criterion(matcher=match)
    golden.check(predictions, targets, criterion, arrays, assert_close)


@pytest.mark.parametrize("nms", ["topk", "nms"])
@pytest.mark.parametrize("name", golden.NAMES)
def test_inference(name, nms):
    arrays = golden.load(f"inference_{name}_{nms}")
    found = detect(golden.predictions(arrays), 100, 0.5 if nms == "nms" else None)
    assert len(found) == len(arrays["logits"])
    for i, detections in enumerate(found):
        assert_close(detections.scores, arrays[f"scores{i}"])
        # As sets: equal scores may stand in another order.
        assert golden.as_set(detections.boxes, detections.labels) == golden.as_set(
            arrays[f"pred_boxes{i}"], arrays[f"classes{i}"]
        )
