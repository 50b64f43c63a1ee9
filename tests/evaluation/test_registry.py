"""Evaluators by name: ``TEST.EVALUATOR``."""

from __future__ import annotations

import math

import pytest
from helpers.configs import R50, refused

from onenet import EVALUATOR_REGISTRY, Evaluator
from onenet.evaluation.registry import choose_evaluator
from onenet.evaluation.report import score, tables
from onenet.evaluation.truth import read_truth
from onenet.lightning.config import load_cfg


def test_a_users_evaluator_gives_the_metrics(shapes):
    @EVALUATOR_REGISTRY.register()
    def counted(cfg):
        return Evaluator("mine", lambda truth, results: {"found": float(len(results))})

    truth = read_truth(shapes / "annotations" / "instances_val.json")
    try:
        evaluator = choose_evaluator(load_cfg(R50, ["TEST.EVALUATOR", "counted"]))
    finally:
        del EVALUATOR_REGISTRY._obj_map["counted"]
    metrics = score(evaluator, truth, [])
    assert evaluator.group == "mine"
    assert metrics == pytest.approx({"found": 0.0, "duplicates": math.nan}, nan_ok=True)
    assert "found" in tables(metrics) and "0.00" in tables(metrics)


def test_an_unknown_evaluator_gets_the_choices_and_the_nearest():
    assert refused(R50, "TEST.EVALUATOR", "CrowdHuman") == (
        "TEST.EVALUATOR must be one of coco, crowdhuman, got 'CrowdHuman'; "
        "did you mean 'crowdhuman'?"
    )
