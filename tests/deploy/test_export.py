"""Exported files: their graphs, and that they detect the same as the model."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from helpers.onnx_example import examples_in_the_docs
from helpers.project import ROOT
from helpers.runs import trained, unchanged_process
from torch._dynamo.exc import UserError, UserErrorType

from onenet.api import export as tool
from onenet.checkpoints.weights import AVERAGED
from onenet.deploy.export import Deployed, check_nodes, largest_differences
from onenet.deploy.runtime import IMAGES, SIZES, OnnxPredictor, pad_images
from onenet.errors import ExportError, OneNetError
from onenet.lightning.config import load_cfg
from onenet.lightning.predictor import Predictor

_PYRAMID = {
    "MODEL__BACKBONE__NAME": "build_retinanet_resnet_fpn_backbone",
    "MODEL__RESNETS__NORM": "FrozenBN",
    "MODEL__RESNETS__OUT_FEATURES": ["res3", "res4", "res5"],
    "MODEL__FPN__IN_FEATURES": ["res3", "res4", "res5"],
    "MODEL__FPN__OUT_CHANNELS": 32,
    "MODEL__OneNet__IN_FEATURES": ["p4", "p7"],
    "MODEL__OneNet__CONV_CHANNELS": 64,
    "MODEL__OneNet__NUM_CONV": 1,
}
HEADS = {
    "stages": {
        "MODEL__OneNet__NUM_CLASSES": 1,
        "MODEL__OneNet__NUM_HEADS": 3,
        "MODEL__OneNet__INFERENCE_HEADS": 2,
    },
    "dcn": {"MODEL__OneNet__DCN": True, "INPUT__FORMAT": "BGR"},
    "mobilenet": {
        "MODEL__BACKBONE__NAME": "build_mobilenetv3_backbone",
        "MODEL__MOBILENETV3__SIZE": "small",
        "MODEL__OneNet__DECONV_CHANNEL": [96, 16, 16, 16],
    },
    # Batch norms before convolutions cannot be folded.
    "timm": {
        "MODEL__BACKBONE__NAME": "build_timm_backbone",
        "MODEL__TIMM__NAME": "resnetv2_18",
        "MODEL__OneNet__DECONV_CHANNEL": [512, 16, 16, 16],
    },
    "fcos": {"MODEL__OneNet__HEAD": "FCOS", **_PYRAMID},
    "retinanet": {
        "MODEL__OneNet__HEAD": "RetinaNet",
        "MODEL__ANCHOR_GENERATOR__SIZES": [[16, 32]],
        **_PYRAMID,
    },
}
SLOW = set(HEADS) - {"dcn"}
# (H, W) px of the images of a batch: none has the count, size and shape of the traced example.
BATCHES = ([(96, 160)], [(64, 96), (50, 33), (96, 7)], [(32, 32), (20, 30)])


def export(config: Path, output: Path, *words: str) -> None:
    with unchanged_process():
        tool.main(["--config-file", str(config), "--output", str(output), *words])


def refused(capsys, config: Path, output: Path, *words: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        export(config, output, "--engine", "lightning", *words)
    assert stopped.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def assert_same_detections(expected, found, size: tuple[int, int]) -> None:
    """Check that two sets of detections of one image are equal, in any order."""
    arrays = [[np.asarray(v) for v in values] for values in (expected, found)]
    px, score = largest_differences(*arrays, size)
    assert px < 1e-2 and score < 1e-4


@torch.inference_mode()
def by_torch(predictor: Predictor, images: list[np.ndarray]) -> list[tuple]:
    """Boxes, scores and labels for each image."""
    model = predictor.model
    pixels = [i[..., ::-1] if predictor.bgr else i for i in images]
    tensors = [torch.from_numpy(p.transpose(2, 0, 1).copy()) for p in pixels]
    return list(zip(*model.find(model.batch(tensors)), strict=True))


def check_graph(path: Path, deformable: bool) -> None:
    model = onnx.load(path)
    kinds = {node.op_type for node in model.graph.node}
    assert not kinds & {"NonMaxSuppression", "BatchNormalization"}
    assert ("DeformConv" in kinds) == deformable
    assert [o.version for o in model.opset_import if o.domain == ""][0] >= 19
    assert str(ROOT).encode() not in path.read_bytes()


def check_inputs_and_outputs(session) -> None:
    values = [*session.get_inputs(), *session.get_overridable_initializers()]
    assert [(v.name, v.type, v.shape) for v in (*values, *session.get_outputs())] == [
        ("images", "tensor(uint8)", ["batch", 3, "height", "width"]),
        ("sizes", "tensor(int64)", ["batch_or_1", 2]),
        ("boxes", "tensor(float)", ["batch", "detections", 4]),
        ("scores", "tensor(float)", ["batch", "detections"]),
        ("labels", "tensor(int64)", ["batch", "detections"]),
    ]


@pytest.mark.parametrize(
    "head",
    [pytest.param(h, marks=pytest.mark.slow) if h in SLOW else h for h in HEADS],
)
def test_onnx_runtime_detects_what_torch_does(head, shapes, tmp_path, capsys):
    # One test checks everything, since an export takes seconds.
    if head == "timm":
        pytest.importorskip("timm")
    averaged = {"weights": AVERAGED} if head == "dcn" else {}
    config, _ = trained(tmp_path, shapes, averaged, **HEADS[head])
    output = tmp_path / "new" / "model.onnx"
    required = head == "stages"  # the heads do not differ in this
    export(config, output, "--engine", "lightning", *["--require-sizes"] * required)
    report = capsys.readouterr().out
    assert "checked  2 × 3 × 256 × 288" in report and f"{output}: " in report
    assert [file.name for file in output.parent.iterdir()] == ["model.onnx"]
    check_graph(output, deformable=head == "dcn")

    predictor, exported = Predictor(load_cfg(config)), OnnxPredictor(output, threads=1)
    session, info = exported.session, exported.info
    check_inputs_and_outputs(session)
    # Simplifiers take what has a default for a constant.
    assert [value.name for value in session.get_inputs()] == [IMAGES, SIZES][: 1 + required]
    assert exported.class_names == predictor.class_names
    assert (info.max_detections, info.min_size, info.max_size, info.stride) == (100, 64, 64, 32)
    assert (info.config, info.input_format, info.ema) == ("tiny.yaml", "RGB", bool(averaged))

    for sizes in BATCHES:
        images = [noise(*size, seed) for seed, size in enumerate(sizes)]
        batch, true_sizes = pad_images(images, 32)
        outputs = session.run(None, {IMAGES: batch, SIZES: true_sizes})
        expected = by_torch(predictor, images)
        for one, size, *found in zip(expected, sizes, *outputs, strict=True):
            assert_same_detections(one, found, size)
        # The content of the padding does not matter.
        for row, (height, width) in zip(batch, sizes, strict=True):
            row[:, height:], row[:, :, width:] = 255, 255
        again = session.run(None, {IMAGES: batch, SIZES: true_sizes})
        assert all((a == b).all() for a, b in zip(outputs, again, strict=True))

    if not required:
        image = noise(64, 96)
        (expected,) = by_torch(predictor, [image])
        whole = session.run(None, {IMAGES: image.transpose(2, 0, 1)[None]})
        assert_same_detections(expected, [values[0] for values in whole], (64, 96))
    image = noise(81, 200)
    found = predictor(image)
    expected = (found.boxes, found.scores, found.labels)
    exported = exported(image)
    assert_same_detections(expected, (exported.boxes, exported.scores, exported.labels), (81, 200))


@pytest.mark.slow
def test_torch_export(shapes, tmp_path, capsys, monkeypatch):
    config, _ = trained(tmp_path, shapes, **HEADS["dcn"])
    output = tmp_path / "model.pt2"
    export(config, output, "--engine", "lightning", "--format", "torch")
    report = capsys.readouterr().out
    assert "images torch.uint8 (" in report and "checked  2 × 3 × 256 × 288" in report
    texts = {"onenet.json": ""}
    program = torch.export.load(output, extra_files=texts)
    assert json.loads(texts["onenet.json"])["max_detections"] == "100"
    assert not [node for node in program.graph.nodes if "nms" in str(node.target)]
    sizes = [(64, 96), (50, 70), (96, 65)]
    images = [noise(*size) for size in sizes]
    with torch.inference_mode():
        outputs = program.module()(*map(torch.from_numpy, pad_images(images, 32)))
    expected = by_torch(Predictor(load_cfg(config)), images)
    for one, size, *found in zip(expected, sizes, *outputs, strict=True):
        assert_same_detections(one, found, size)

    monkeypatch.chdir(tmp_path)
    (code,) = (code for code in examples_in_the_docs() if "model.pt2" in code)
    exec(code, scope := {})
    assert scope["boxes"].shape == (2, 100, 4)


def test_the_best_threshold_of_the_report_is_exported(tmp_path, capsys):
    weights = tmp_path / "model.pth"
    weights.write_bytes(b"")
    predictor = SimpleNamespace(weights=weights, class_names=["cat"])
    args = SimpleNamespace(report=None)
    assert tool.threshold_of(args, predictor) is None
    assert "No report.json beside the weights" in capsys.readouterr().out
    content = {"best_threshold": 0.3, "class_names": ["cat"], "weights": None}
    (tmp_path / "report.json").write_text(json.dumps(content))
    assert tool.threshold_of(args, predictor) == 0.3
    assert "best F1: 0.3, from" in capsys.readouterr().out
    other = tmp_path / "other.json"
    other.write_text(json.dumps({**content, "weights": {"file": "w", "sha256": "0"}}))
    with pytest.raises(OneNetError, match="other weights"):
        tool.threshold_of(SimpleNamespace(report=str(other)), predictor)
    other.replace(tmp_path / "report.json")
    assert tool.threshold_of(args, predictor) is None
    assert "gets no best threshold: " in capsys.readouterr().out


def test_the_models_files_are_not_overwritten(shapes, tmp_path, capsys):
    config, weights = trained(tmp_path, shapes)
    before = weights.read_bytes()
    os.link(weights, tmp_path / "hard.onnx")
    message = refused(capsys, config, tmp_path / "hard.onnx")
    assert f"overwrite the input {weights}" in message and "hard.onnx" in message
    assert weights.read_bytes() == before


def test_what_is_not_exported(shapes, tmp_path, capsys, monkeypatch):
    config, _ = trained(tmp_path, shapes)
    file = tmp_path / "model.onnx"
    message = refused(capsys, config, tmp_path / "m.pt2", "--format", "torch", "--require-sizes")
    assert "--require-sizes is for --format onnx" in message
    message = refused(capsys, config, tmp_path / "model.pt2")
    assert "--format onnx needs a name that ends with .onnx" in message
    message = refused(capsys, config, file, "--opts", "MODEL.OneNet.NMS", "True")
    assert "MODEL.OneNet.NMS is True: NMS is for ablations and cannot be exported" in message
    message = refused(capsys, config, file, "--opts", "MODEL.META_ARCHITECTURE", "CenterNet")
    assert "MODEL.META_ARCHITECTURE is CenterNet; only OneNet can be exported" in message
    half = Predictor(load_cfg(config, ["TEST.PRECISION", "bfloat16"]))
    with pytest.raises(ExportError, match="set TEST.PRECISION float32"):
        Deployed(half.model)
    assert "MODEL.WEIGHTS is empty" in refused(capsys, config, file, "--opts", "MODEL.WEIGHTS", "")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    message = refused(capsys, config, file)
    assert "ONNX needs onnxscript: pip install 'onenet[export]'" in message
    assert not list(tmp_path.glob("*model.onnx"))


def test_a_torch_that_cannot_trace_the_model_is_named(shapes, tmp_path, capsys, monkeypatch):
    def export(*args, **kwargs):
        raise UserError(UserErrorType.CONSTRAINT_VIOLATION, "the batch is specialised\nmore")

    config, _ = trained(tmp_path, shapes)
    monkeypatch.setattr(torch.export, "export", export)
    message = refused(capsys, config, tmp_path / "model.onnx")
    assert f"torch {torch.__version__} cannot trace the model (the batch is specialised)" in message
    assert "export with torch 2.11 or later" in message
    assert not list(tmp_path.glob("*model.onnx"))


def test_a_file_that_differs_from_its_model_is_not_kept(shapes, tmp_path, capsys, monkeypatch):
    config, _ = trained(tmp_path, shapes)

    def write(path, deployed, info):
        path.touch()

        def call(images, sizes):
            with torch.inference_mode():
                boxes, *rest = deployed(torch.from_numpy(images), torch.from_numpy(sizes))
            return [(boxes + 0.02).numpy(), *(values.numpy() for values in rest)]

        return call

    monkeypatch.setitem(tool.WRITERS, "onnx", write)
    message = refused(capsys, config, tmp_path / "model.onnx")
    assert "the detections of the file differ from the model's by more than" in message
    assert not list(tmp_path.glob("*model.onnx"))


@pytest.mark.parametrize("kind", ["NonMaxSuppression", "BatchNormalization"])
def test_graphs_with_nms_or_batch_norms_are_refused(kind):
    node = onnx.helper.make_node(kind, ["a", "b"], ["c"])
    graph = onnx.helper.make_graph([node], "g", [], [])
    with pytest.raises(ExportError, match=f"holds {kind}"):
        check_nodes(onnx.helper.make_model(graph))


def a_set(*rows: list[float]) -> tuple[np.ndarray, ...]:
    """Boxes, scores and labels from rows of all three."""
    values = np.array(rows, np.float32)
    return values[:, :4], values[:, 4], values[:, 5].astype(np.int64)


def test_differences_of_sets():
    first = a_set([-8, 10, 30, 40, 0.9, 1], [0, 0, 50, 50, 0.9, 2], [5, 5, 9, 9, 0.3, 1])
    # In another order, 0.5 px and 0.025 apart; parts beyond the image do not count.
    other = a_set([0, 0, 50, 50.5, 0.875, 2], [-3, 10, 30, 40, 0.9, 1], [5, 5, 9, 9, 0.3, 1])
    assert largest_differences(first, first, (60, 60)) == (0, 0)
    assert largest_differences(first, other, (60, 60)) == pytest.approx((0.5, 0.025))
    # Rounding may decide which detection comes last, but not the others.
    last = a_set([-8, 10, 30, 40, 0.9, 1], [0, 0, 50, 50, 0.9, 2], [7, 7, 8, 8, 0.30005, 3])
    assert largest_differences(first, last, (60, 60)) == (0, 0)
    missing = a_set([-8, 10, 30, 40, 0.9, 1], [0, 0, 50, 50, 0.9, 3], [5, 5, 9, 9, 0.3, 1])
    assert largest_differences(first, missing, (60, 60)) == (np.inf, np.inf)
