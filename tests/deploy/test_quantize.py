"""Exported files of integers and of float16: what they hold, and what the program says of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from helpers.runs import refused, trained, unchanged_process
from onnx import TensorProto

from onenet.api import export as tool
from onenet.deploy.export import Deployed, to_onnx
from onenet.deploy.quantize import (
    calibration_batches,
    describe,
    network_nodes,
    to_float16,
    to_int8,
)
from onenet.deploy.runtime import IMAGES, OUTPUTS, ModelInfo, OnnxPredictor, open_session
from onenet.detector import OneNet
from onenet.errors import ExportError
from onenet.heads.deconv import DeconvHead

INFO = ModelInfo(list("abcdef"), 100, 64, 64, 32, "RGB", "NCHW", False, "tiny.yaml", "0.1.0")


def name_of(data: Path, split: str) -> str:
    return f"{data}/annotations/instances_{split}.json:{data}/{split}"


class Backbone(torch.nn.Module):
    """Four maps, and one sum of two."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 16, 4, stride=4)
        self.res3 = torch.nn.Conv2d(16, 16, 3, stride=2, padding=1)
        self.res4 = torch.nn.Conv2d(16, 16, 3, stride=2, padding=1)
        self.side = torch.nn.Conv2d(16, 16, 3, padding=1)
        self.res5 = torch.nn.Conv2d(16, 32, 3, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        res2 = self.stem(x).relu()
        res3 = self.res3(res2).relu()
        res4 = self.res4(res3).relu()
        res4 = (res4 + self.side(res4)).relu()
        return {"res2": res2, "res3": res3, "res4": res4, "res5": self.res5(res4).relu()}


@pytest.fixture(scope="module")
def exported(shapes, tmp_path_factory) -> tuple[onnx.ModelProto, Path]:
    """A float32 model, small as tracing takes long, and a config with as many classes."""
    config, _ = trained(tmp_path_factory.mktemp("quantize"), shapes)
    torch.manual_seed(0)
    head = DeconvHead(
        in_channels=[16, 16, 16, 32],
        stride=4,
        num_classes=6,
        dcn=False,
        deconv_channels=[32, 16, 16, 16],
    )
    model = OneNet(
        backbone=Backbone(),
        head=head,
        criterion=torch.nn.Identity(),
        in_features=["res2", "res3", "res4", "res5"],
        pixel_mean=[123.675, 116.28, 103.53],
        pixel_std=[58.395, 57.12, 57.375],
    )
    return to_onnx(Deployed(model.eval()), INFO), config


@pytest.fixture(scope="module")
def smaller(exported, shapes) -> dict[str, onnx.ModelProto]:
    model, _ = exported
    batches = list(calibration_batches(name_of(shapes, "train"), INFO, 3))
    assert len(batches) == 3 and batches[0][0].dtype == np.uint8
    return {"int8": to_int8(model, batches), "float16": to_float16(model)}


def predicting(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The convolutions to scores and boxes."""
    convs = [node for node in model.graph.node if node.op_type == "Conv"]
    return [n for n in convs if "cls_score" in n.input[1] or "ltrb_pred" in n.input[1]]


@pytest.mark.parametrize("kind", ["int8", "float16"])
def test_the_file_is_smaller_and_detects_alike(exported, smaller, kind, tmp_path):
    files = {name: tmp_path / f"{name}.onnx" for name in ("float32", kind)}
    for path, model in zip(files.values(), (exported[0], smaller[kind]), strict=True):
        path.write_bytes(model.SerializeToString())
    assert files[kind].stat().st_size < files["float32"].stat().st_size
    predictors = [OnnxPredictor(path, threads=1) for path in files.values()]
    assert predictors[0].info == predictors[1].info
    kinds = [[(v.name, v.type) for v in p.session.get_outputs()] for p in predictors]
    assert kinds[0] == kinds[1]
    # A batch of a size that neither the trace nor the calibration saw.
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 96, 128), np.uint8)
    found = [p.session.run(OUTPUTS, {IMAGES: pixels}) for p in predictors]
    assert found[0][1].max() == pytest.approx(found[1][1].max(), abs=0.2)
    assert np.isfinite(found[1][0]).all()
    # The layers that predict, and all behind them, stay float32.
    weights = {t.name: t.data_type for t in smaller[kind].graph.initializer}
    assert {weights[node.input[1]] for node in predicting(smaller[kind])} == {TensorProto.FLOAT}
    small = TensorProto.INT8 if kind == "int8" else TensorProto.FLOAT16
    assert sum(data_type == small for data_type in weights.values()) > 10


def test_what_is_converted(exported, smaller):
    inside = network_nodes(exported[0])
    assert inside[0].op_type == "Conv" and not {n.name for n in inside} & {
        n.name for n in predicting(exported[0])
    }
    assert not {"TopK", "GatherElements", "Range"} & {n.op_type for n in inside}
    # Seven bits, so that sums of two products fit in 16.
    weights = [
        onnx.numpy_helper.to_array(t)
        for t in smaller["int8"].graph.initializer
        if t.data_type == TensorProto.INT8 and t.dims and len(t.dims) == 4
    ]
    assert weights and max(np.abs(w.astype(int)).max() for w in weights) <= 64


def test_a_model_that_cannot_be_converted(exported):
    model = onnx.ModelProto()
    model.CopyFrom(exported[0])
    node = network_nodes(model)[0]
    weight = next(t for t in model.graph.initializer if t.name == node.input[1])
    values = onnx.numpy_helper.to_array(weight) + 1e6
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    with pytest.raises(ExportError, match="has values beyond float16's 65,504"):
        to_float16(model)
    for node in predicting(model):
        node.input[1] = "other"
    with pytest.raises(ExportError, match="the head has none called cls_score, ltrb_pred"):
        network_nodes(model)


def test_the_program_says_what_it_costs(exported, shapes, tmp_path, capsys, monkeypatch):
    model, config = exported
    # Tracing takes seconds, and other tests do it.
    monkeypatch.setattr(tool, "to_onnx", lambda deployed, info, **options: model)
    monkeypatch.setattr(tool, "check_file", lambda *args: None)
    words = ["--engine", "lightning", "--config-file", str(config), "--output"]
    data = ["--calibrate", name_of(shapes, "train"), "--calibration-images", "2"]
    output = tmp_path / "small.onnx"
    with unchanged_process():
        tool.main([*words, str(output), "--quantize", "int8", *data])
    report = capsys.readouterr().out
    assert "convolutions, calibrated on" in report and "MB, now" in report
    assert f"on       2 images of {name_of(shapes, 'train')}" in report
    assert "are in both files" in report and " in float32, now " in report
    metadata = open_session(output).get_modelmeta().custom_metadata_map
    assert metadata["precision"] == "int8" and "max_detections" in metadata
    with unchanged_process():
        tool.main([*words, str(output), "--half", "--evaluate", name_of(shapes, "val")])
    report = capsys.readouterr().out
    assert "float16" in report and " in float32, now " in report
    assert [path.name for path in tmp_path.iterdir()] == ["small.onnx"]


def test_flags_that_do_not_fit(exported, tmp_path, capsys, shapes):
    words = ["--engine", "lightning", "--config-file", str(exported[1])]
    words += ["--output", str(tmp_path / "m.onnx")]
    val = name_of(shapes, "val")
    for more, message in (
        (["--quantize", "int8"], "--quantize int8 and --calibrate JSON:FOLDER belong together"),
        (["--half", "--calibrate", val], "--quantize int8 and --calibrate"),
        (["--evaluate", val], "--evaluate compares a smaller file with float32"),
        (["--quantize", "int8", "--calibrate", "none.json:x"], "no annotation file 'none.json'"),
    ):
        assert message in refused(lambda *w: tool.main(w), capsys, *words, *more)
    pt2 = ["--format", "torch", "--output", str(tmp_path / "m.pt2"), "--half"]
    assert "for --format onnx" in refused(lambda *w: tool.main(w), capsys, *words, *pt2)
    assert not list(tmp_path.iterdir())


def test_the_metadata_name_the_precision():
    model = onnx.ModelProto()
    describe(model, "float16")
    assert [(p.key, p.value) for p in model.metadata_props] == [("precision", "float16")]
