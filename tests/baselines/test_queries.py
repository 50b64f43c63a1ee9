"""Networks of queries: OneNet's criterion trains every stage, and the last one detects."""

from __future__ import annotations

import pytest
import torch
from helpers.small_detector import MEAN, STD, image, targets
from torch import nn

from onenet.baselines.queries import (
    QUERY_MATCHERS,
    QueryDetector,
    initial_boxes,
    query_options,
    stage_predictions,
)
from onenet.errors import ConfigError
from onenet.inference.optimize import prepare
from onenet.lightning.config import get_cfg

close = torch.testing.assert_close


class Queries(QueryDetector):
    """Two stages: the colour of the image's own pixels gives the logits, its own size the boxes."""

    def stages(self, batch, sizes):
        boxes = initial_boxes(self.head.weight, sizes)
        means = torch.stack(
            [
                pixels[:, :h, :w].mean((1, 2))
                for pixels, (h, w) in zip(batch, sizes.tolist(), strict=True)
            ]
        )
        logits = means[:, None, :2] + self.head.weight.sum(dim=1)[:, None]
        return [
            stage_predictions(logits / stage, boxes / stage, boxes[0].detach()) for stage in (2, 1)
        ]


def queries(**options) -> Queries:
    """Three queries and two classes."""
    cfg = get_cfg()
    cfg.MODEL.OneNet.MATCHER = "hungarian"
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = list(MEAN), list(STD)
    head = nn.Embedding(3, 4)
    head.weight.data = torch.tensor(
        [[0.5, 0.5, 1.0, 1.0], [0.25, 0.5, 0.5, 0.5], [0.8, 0.6, 0.2, 0.4]]
    )
    return Queries(**(query_options(cfg, None) | options), head=head)


def test_initial_boxes_are_parts_of_each_images_own_size():
    parts = torch.tensor([[0.5, 0.5, 1.0, 1.0], [0.25, 0.5, 0.5, 0.2]])
    found = initial_boxes(parts, torch.tensor([[100, 200], [10, 40]]))
    expected = [[[0, 0, 200, 100], [0, 40, 100, 60]], [[0, 0, 40, 10], [0, 4, 20, 6]]]
    close(found, torch.tensor(expected, dtype=torch.float32))


def test_the_criterion_trains_every_stage_by_itself():
    model = queries()
    goals = [targets([2, 3, 12, 20], [20, 4, 30, 20]), targets()]
    images = [image(32, 40), image(20, 24, 1)]
    found = model(images, goals)
    ends = ("", "_2")
    assert list(found) == [f"loss_{t}{e}" for e in ends for t in ("ce", "giou", "bbox")]
    stages = model.stages(*model.inputs(images))
    for end, predictions in zip(ends, stages, strict=True):
        for name, loss in model.criterion(predictions, goals).items():
            close(found[name + end], loss)
    sum(found.values()).backward()
    assert model.head.weight.grad.isfinite().all() and model.head.weight.grad.any()


def test_images_of_different_sizes_give_what_each_gives_alone():
    model = queries().eval()
    images = [image(20, 30), image(32, 32, 1), image(9, 31, 2)]
    with torch.inference_mode():
        together = model(images)
        raw = model.predict(images)
        for row, (one, found) in enumerate(zip(images, together, strict=True)):
            (alone,) = model([one])
            close(found.boxes, alone.boxes)
            close(found.scores, alone.scores)
            close(raw.boxes[row], model.predict([one]).boxes[0])
    assert len(together[0]) == 6  # 3 queries × 2 classes, fewer than the 100 of the config


def test_nms_is_for_ablation_as_in_onenet():
    model = queries().eval()
    model.head.weight.data[1] = model.head.weight.data[0]
    with torch.inference_mode():
        assert [len(found) for found in model([image(20, 30)])] == [6]
        model.nms_iou = 0.5
        assert [len(found) for found in model([image(20, 30)])] == [4]


def test_a_prepared_network_takes_the_sizes_too():
    model, images = queries().eval(), [image(20, 30), image(32, 32, 1)]
    with torch.inference_mode():
        expected = model(images)
        found = prepare(model)(images)
    for ours, theirs in zip(found, expected, strict=True):
        close(ours.boxes, theirs.boxes)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("LOCATION_COST", "predefined", "LOCATION_COST is 'predefined'.*predicted.*grid points"),
        ("MATCHER", "poto", "MATCHER is 'poto'.*hungarian, minimum.*no place"),
    ],
)
def test_an_assignment_by_places_is_refused(key, value, words):
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "MyQueries"
    cfg.MODEL.OneNet[key] = value
    with pytest.raises(ConfigError, match=words) as caught:
        query_options(cfg, None)
    assert "MyQueries" in str(caught.value)


def test_a_matcher_of_the_users_own_can_be_allowed(monkeypatch):
    monkeypatch.setattr("onenet.baselines.queries.QUERY_MATCHERS", QUERY_MATCHERS | {"poto"})
    cfg = get_cfg()
    cfg.MODEL.OneNet.MATCHER = "poto"
    assert query_options(cfg, None)["nms_iou"] is None
