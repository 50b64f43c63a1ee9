"""Exported files of models on Detectron2's backbones."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("detectron2")

from helpers.detectron2_runs import d2_process
from helpers.runs import trained

from onenet.api import export as tool
from onenet.d2.config import load_cfg
from onenet.d2.predictor import Predictor
from onenet.deploy.export import largest_differences
from onenet.deploy.runtime import OnnxPredictor


def test_an_exported_model_detects_what_detectron2s_predictor_does(shapes, tmp_path, capsys):
    config, _ = trained(tmp_path, shapes, MODEL__OneNet__DCN=True, INPUT__FORMAT="BGR")
    output = tmp_path / "model.onnx"
    with d2_process():
        tool.main(["--config-file", str(config), "--output", str(output), "--engine", "detectron2"])
        expected = Predictor(load_cfg(config))
    assert "Engine: onenet.d2" in capsys.readouterr().err
    image = np.random.default_rng(0).integers(0, 256, (81, 200, 3), np.uint8)
    found = [expected(image), OnnxPredictor(output, threads=1)(image)]
    arrays = [[np.asarray(v) for v in (d.boxes, d.scores, d.labels)] for d in found]
    px, score = largest_differences(*arrays, (81, 200))
    assert px < 1e-2 and score < 1e-4
