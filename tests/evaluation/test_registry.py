"""Evaluators by name: ``TEST.EVALUATOR``."""

from __future__ import annotations

import math

import pytest
from helpers.configs import R50, refused

from onenet import EVALUATOR_REGISTRY, Evaluator
from onenet.data.dataset import CocoDetection
from onenet.data.sources import find_dataset
from onenet.lightning.config import load_cfg
from onenet.lightning.evaluate import score


def test_a_users_evaluator_gives_the_metrics(shapes):
    @EVALUATOR_REGISTRY.register()
    def counted(cfg):
        return Evaluator("mine", lambda truth, results: {"found": float(len(results))})

    data = CocoDetection(find_dataset(f"{shapes}/annotations/instances_val.json:{shapes}/val"))
    try:
        metrics, tables = score(load_cfg(R50, ["TEST.EVALUATOR", "counted"]), data, [])
    finally:
        del EVALUATOR_REGISTRY._obj_map["counted"]
    assert metrics == pytest.approx({"mine/found": 0.0, "mine/duplicates": math.nan}, nan_ok=True)
    assert "found" in tables and "0.00" in tables


def test_an_unknown_evaluator_gets_the_choices_and_the_nearest():
    assert refused(R50, "TEST.EVALUATOR", "CrowdHuman") == (
        "TEST.EVALUATOR must be one of coco, crowdhuman, got 'CrowdHuman'; "
        "did you mean 'crowdhuman'?"
    )
