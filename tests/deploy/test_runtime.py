"""The ONNX Runtime predictor, on a tiny file with known answers."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from helpers.onnx_example import INFO, examples_in_the_docs, white, write_model
from helpers.project import ROOT
from PIL import Image

from onenet.deploy.runtime import ArrayDetections, ModelInfo, OnnxPredictor
from onenet.errors import DatasetError, ExportedModelError, OneNetError

PROJECT = ROOT / "projects" / "OneNet"


@pytest.fixture
def model(tmp_path) -> Path:
    return write_model(tmp_path / "model.onnx")


def refused(path: Path, **options) -> str:
    with pytest.raises(ExportedModelError) as error:
        OnnxPredictor(path, **options)
    return str(error.value)


def test_an_image_is_padded_and_its_padding_is_known(model):
    found = OnnxPredictor(model, threads=1)(white(50, 100))
    assert found.boxes.tolist() == [[0, 0, 100, 50], [0, 0, 20, 30]]
    assert found.scores == pytest.approx([50 * 100 / (64 * 128), 0])
    assert found.labels.tolist() == [2, 0]
    types = (found.boxes.dtype, found.scores.dtype, found.labels.dtype)
    assert types == (np.float32, np.float32, np.int64)


def test_boxes_are_in_the_originals_pixels(tmp_path):
    info = replace(INFO, min_size=32, max_size=64)
    path = write_model(tmp_path / "model.onnx", info.to_metadata())
    found = OnnxPredictor(path, threads=1)(white(80, 200))
    # Resized to 26 × 64, since the longer side may have 64 px; padded to 32 × 64.
    assert found.boxes == pytest.approx(np.array([[0, 0, 200, 80], [0, 0, 62.5, 80]]))
    assert found.scores[0] == pytest.approx(26 / 32)


def test_images_of_like_shape_are_batched_and_told_apart(model, monkeypatch):
    predictor = OnnxPredictor(model, threads=1, images_per_batch=2)
    sizes = [(50, 100), (64, 7), (60, 128), (33, 97), (64, 30)]
    batches, run = [], predictor.session.run
    feeds = SimpleNamespace(run=lambda names, feed: batches.append(feed) or run(names, feed))
    monkeypatch.setattr(predictor, "session", feeds)
    found = predictor.predict_batch([white(*size) for size in sizes])
    # At most two images of one padded size; the results keep the order of the images.
    shapes = [feed["images"].shape for feed in batches]
    assert shapes == [(2, 3, 64, 128), (2, 3, 64, 32), (1, 3, 64, 128)]
    assert [d.boxes[0].tolist() for d in found] == [[0, 0, w, h] for h, w in sizes]
    assert [d.scores[0] for d in found] == pytest.approx(
        [50 * 100 / 64 / 128, 7 / 32, 60 / 64, 33 * 97 / 64 / 128, 30 / 32]
    )
    assert found[1].boxes[1].tolist() == [0, 0, 7, 30]
    assert predictor.predict_batch([]) == []


def test_a_part_of_the_detections():
    scores = np.array([0.9, 0.5, 0.1], np.float32)
    found = ArrayDetections(
        np.arange(12, dtype=np.float32).reshape(3, 4), scores, np.array([5, 6, 7])
    )
    assert len(found) == 3
    assert found[found.scores > 0.4].labels.tolist() == [5, 6]
    assert found[:1].boxes.tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize("wrong", [None, white(8, 8)[..., 0], white(8, 8) / 255, white(8, 0)])
def test_other_arrays_than_images_are_refused(model, wrong):
    with pytest.raises(DatasetError, match=r"Expected a NumPy array \(H, W, 3\) uint8 RGB, but"):
        OnnxPredictor(model, threads=1)(wrong)


def test_metadata_round_trip(model):
    predictor = OnnxPredictor(model, threads=1)
    assert predictor.info == INFO == ModelInfo.from_metadata(INFO.to_metadata())
    assert predictor.class_names == ["cat", "dog", "Käfer"]
    assert INFO.to_metadata()["class_names"] == '["cat", "dog", "Käfer"]'


def test_the_confidence_threshold(tmp_path, model):
    texts = INFO.to_metadata()
    del texts["best_threshold"]  # as files of older versions
    old = write_model(tmp_path / "old.onnx", texts)
    assert OnnxPredictor(old, threads=1).info.best_threshold is None
    with pytest.raises(OneNetError, match="exported without one"):
        OnnxPredictor(old, threads=1, confidence_threshold="best")
    good = write_model(tmp_path / "m.onnx", replace(INFO, best_threshold=0.25).to_metadata())
    predictor = OnnxPredictor(good, threads=1, confidence_threshold="best")
    assert predictor.confidence_threshold == predictor.info.best_threshold == 0.25
    assert len(predictor(white(64, 96))) == 1
    report = {"best_threshold": 0.5, "class_names": INFO.class_names, "weights": None}
    (tmp_path / "report.json").write_text(json.dumps(report))
    assert OnnxPredictor(old, threads=1, confidence_threshold="best").confidence_threshold == 0.5
    assert len(OnnxPredictor(old, threads=1)(white(64, 96))) == 2
    for wrong in (-0.1, 1.1, "high"):
        with pytest.raises(OneNetError, match="from 0 to 1, or 'best', got"):
            OnnxPredictor(old, confidence_threshold=wrong)


def test_options_reach_onnx_runtime(model):
    session = OnnxPredictor(model, ["CPUExecutionProvider"], threads=1).session
    assert session.get_providers() == ["CPUExecutionProvider"]
    assert session.get_session_options().intra_op_num_threads == 1


def test_other_files_are_refused(tmp_path):
    (tmp_path / "text.onnx").write_text("no model")
    assert "ONNX Runtime cannot load" in refused(tmp_path / "text.onnx")
    assert "there is no such file" in refused(tmp_path / "none.onnx")
    stranger = write_model(tmp_path / "stranger.onnx", {"author": "somebody"})
    message = refused(stranger)
    assert message.startswith(f"{stranger} is not a file of tools/export.py")
    assert "lacks class_names, max_detections" in message


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("class_names", "[]"),
        ("class_names", '["cat", "\\u001b[31m"]'),
        ("class_names", "cat, dog"),
        ("stride", "0"),
        ("min_size", "-1"),
        ("max_detections", "true"),
        ("ema", "1"),
        ("best_threshold", "1.5"),
        ("best_threshold", "true"),
    ],
)
def test_wrong_metadata_are_refused(tmp_path, key, text):
    path = write_model(tmp_path / "model.onnx", INFO.to_metadata() | {key: text})
    message = refused(path)
    assert message == f"{path} is not a file of tools/export.py: {key} in its metadata is {text!r}"


def test_a_simplified_file_without_its_input_sizes_is_refused(model):
    """As onnxsim and onnxslim leave a file: ``sizes`` is a constant."""
    proto = onnx.load(model)
    kept = [value for value in proto.graph.input if value.name != "sizes"]
    del proto.graph.input[:]
    proto.graph.input.extend(kept)
    whole = onnx.numpy_helper.from_array(np.full((1, 2), 10**6), "sizes")
    proto.graph.initializer.append(whole)
    onnx.save(proto, str(model))
    message = refused(model)
    assert message.startswith(f"{model} has no input sizes, which tools/export.py gave it")
    assert "export with --require-sizes, and simplify that file" in message


def test_a_provider_that_is_not_there_is_refused(model):
    message = refused(model, providers=["NoExecutionProvider", "CPUExecutionProvider"])
    assert "no NoExecutionProvider; it has" in message and "CPUExecutionProvider" in message


def test_without_onnx_runtime_the_error_says_how_to_get_it(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "pip install 'onenet[export]'" in refused(model)


def test_examples_in_the_docs(tmp_path, monkeypatch, capsys):
    write_model(tmp_path / "model.onnx")
    Image.fromarray(white(40, 30)).save(tmp_path / "image.jpg")
    monkeypatch.chdir(tmp_path)
    with_onnx = [code for code in examples_in_the_docs() if "model.onnx" in code]
    assert len(with_onnx) == 2
    scopes: list[dict] = [{} for _ in with_onnx]
    for code, scope in zip(with_onnx, scopes, strict=True):
        exec(code, scope)
    assert capsys.readouterr().out.startswith("Käfer ")
    assert scopes[1]["boxes"].shape == (2, 3, 4) and scopes[1]["class_names"][2] == "Käfer"


def test_numpy_pillow_and_onnx_runtime_are_enough(model):
    code = (
        "import importlib.abc, sys\n"
        "class Only(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        top = name.partition('.')[0]\n"
        "        known = {'onenet', 'numpy', 'PIL', 'onnxruntime', *sys.stdlib_module_names}\n"
        "        if top not in known: raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Only())\n"
        "import numpy as np\n"
        "from onenet.deploy.runtime import OnnxPredictor\n"
        f"found = OnnxPredictor({str(model)!r}, threads=1)(np.zeros((70, 30, 3), np.uint8))\n"
        "assert found.boxes[0].tolist() == [0, 0, 30, 70]\n"
        "assert 'torch' not in sys.modules\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
