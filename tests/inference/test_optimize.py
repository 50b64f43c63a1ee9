"""A model that was made fast: the same detections, no training, no checkpoint."""

from __future__ import annotations

import copy
import logging
from functools import partial

import pytest
import torch
from helpers.small_detector import image, model
from torch import nn

from onenet import Predictions
from onenet.checkpoints.weights import load_weights
from onenet.errors import CheckpointError
from onenet.heads.deconv import DeconvHead
from onenet.heads.fcos import FCOSHead
from onenet.inference import optimize
from onenet.inference.optimize import compile_for_each_size, prepare
from onenet.inference.postprocess import best_detections, top_k

close = torch.testing.assert_close
CPU = torch.device("cpu")
IMAGES = [image(32, 32), image(20, 50, 1), image(30, 31, 2), image(64, 40, 3)]


class Normed(nn.Module):
    """A backbone with a batch norm, and maps of stride 4, 8, 16 and 32."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 4, stride=4, bias=False), nn.BatchNorm2d(4))
        self.stem[1].running_var.fill_(100.0)

    def forward(self, x):
        fine = self.stem(x).relu()
        return {f"res{i + 2}": nn.functional.avg_pool2d(fine, 2**i) for i in range(4)}


def detector(dcn: bool = False):
    torch.manual_seed(0)
    head = DeconvHead(
        in_channels=[4] * 4, stride=4, num_classes=2, deconv_channels=[4] * 4, dcn=dcn
    )
    with torch.no_grad():
        # Scores far enough from each other, boxes of some size.
        head.cls_score.weight.normal_()
        head.ltrb_pred.bias.fill_(4.0)
    return model(backbone=Normed(), head=head).eval()


@torch.inference_mode()
def detections(of, images=IMAGES):
    return of(images)


def assert_alike(found, expected, px, score):
    """Detections of high score have their like, whatever their order."""
    for one, other in zip(found, expected, strict=True):
        assert one.boxes.dtype == one.scores.dtype == torch.float32
        for i in range(10):
            same = (one.labels == other.labels[i]) & ((one.scores - other.scores[i]).abs() < score)
            assert ((one.boxes - other.boxes[i]).abs().amax(dim=1)[same] < px).any()


@pytest.mark.parametrize("dcn", [False, True])
def test_a_fused_model_detects_the_same(dcn):
    plain = detector(dcn)
    fused = prepare(copy.deepcopy(plain))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
    assert not any(p.requires_grad for p in fused.parameters())
    assert_alike(detections(fused), detections(plain), px=1e-3, score=1e-5)


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("dcn", [False, True])
def test_bfloat16_detects_nearly_the_same(dcn, fuse):
    plain = detector(dcn)
    half = prepare(copy.deepcopy(plain), fuse=fuse, precision="bfloat16")
    assert half.head.feat1.weight.dtype == torch.bfloat16
    assert half.head.ltrb_pred.weight.dtype == torch.float32
    assert_alike(detections(half), detections(plain), px=1.0, score=0.03)
    with torch.inference_mode():
        predictions = half.predict(IMAGES[:1])
    assert predictions.logits.dtype == torch.bfloat16
    assert predictions.boxes.dtype == predictions.samples.dtype == torch.float32
    # Anchors and points are no less exact for it.
    assert torch.equal(predictions.samples, plain.predict(IMAGES[:1]).samples)


def test_training_mode_is_left():
    prepared = prepare(detector().train())
    assert not any(m.training for m in prepared.modules())
    prepared.train(False)
    prepared.eval()


@pytest.mark.parametrize("options", [{"fuse": True}, {"fuse": False, "precision": "bfloat16"}])
def test_a_prepared_model_neither_trains_nor_becomes_a_checkpoint(tmp_path, options):
    path = tmp_path / "model.pth"
    prepared = detector()
    torch.save({"model": prepared.state_dict()}, path)
    prepare(prepared, **options)
    with pytest.raises(RuntimeError, match="prepared for inference and cannot train"):
        prepared.train()
    with pytest.raises(RuntimeError, match="not those of a checkpoint"):
        torch.save({"model": prepared.state_dict()}, path)
    with pytest.raises(RuntimeError, match="must be loaded or saved before"):
        load_weights(prepared, str(path))
    # Within a module to be exported it has a state.
    assert "0.head.feat1.weight" in nn.Sequential(prepared).state_dict()


def test_a_fused_models_weights_do_not_load_as_a_checkpoint(tmp_path):
    state = nn.ModuleDict({"x": prepare(detector())}).state_dict()
    torch.save({k.removeprefix("x."): v for k, v in state.items()}, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match="does not fit the model"):
        load_weights(detector(), str(tmp_path / "model.pth"))


def test_nothing_asked_for_nothing_done():
    given = detector()
    before = {name: value.clone() for name, value in given.state_dict().items()}
    prepare(given, fuse=False)
    given.train()
    for name, value in given.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize(
    ("precision", "message"),
    [
        ("float16", "float16 is slower than float32 on the CPU; take bfloat16 there"),
        ("int8", "one of float32, bfloat16, float16, got 'int8'"),
    ],
)
def test_a_precision_that_cannot_be_is_refused(precision, message):
    given = detector()
    with pytest.raises(ValueError, match=message):
        prepare(given, precision=precision)
    given.train()  # it is as it was


def test_a_compiled_model_is_one_graph_for_each_shape(monkeypatch):
    """With the compiler's front end alone: what comes behind it takes minutes."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    plain = detector()
    expected = detections(prepare(copy.deepcopy(plain), precision="bfloat16"), IMAGES[:1])
    whole = partial(torch.compile, backend=backend, fullgraph=True)
    monkeypatch.setattr(torch, "compile", lambda find, mode, dynamic: whole(find, dynamic=dynamic))
    prepare(plain, precision="bfloat16", compile=True)
    torch._dynamo.reset()
    for _ in range(2):
        found = detections(plain, IMAGES[:1])
        close(found[0].boxes, expected[0].boxes)
        assert torch.equal(found[0].labels, expected[0].labels)
    assert len(graphs) == 1


def test_ten_sizes_are_compiled_in_one_process(monkeypatch):
    """torch's own limit is eight, for all models together."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    whole = partial(torch.compile, backend=backend)
    monkeypatch.setattr(torch, "compile", lambda find, mode, dynamic: whole(find, dynamic=dynamic))
    # A head with few operators: each of them is traced ten times.
    head = FCOSHead(in_channels=4, strides=[4], num_classes=2, num_convs=1, channels=4, norm="BN")
    compiled = prepare(model(head=head, in_features=["res2"]).eval(), compile=True)
    for number in range(10):
        compiled([torch.zeros(3, 32, 32 * (number + 1), dtype=torch.uint8)])
    assert len(graphs) == 10
    torch._dynamo.reset()


def test_what_comes_out_of_a_compiled_model_stays(monkeypatch):
    """A CUDA graph writes the next results over the last ones."""
    static = [torch.zeros(1, 5, 4), torch.zeros(1, 5), torch.zeros(1, 5, dtype=torch.int64)]

    def run(batch):
        for tensor in static:
            tensor += 1
        return static

    monkeypatch.setattr(torch, "compile", lambda find, **_: run)
    compiled = prepare(detector(), compile=True)
    first, second = compiled([IMAGES[0]])[0], compiled([IMAGES[0]])[0]
    assert first.scores.tolist() == [1.0] * 5 and second.scores.tolist() == [2.0] * 5


def test_on_cuda_each_call_frees_the_memory_of_the_graphs_before_it(monkeypatch):
    calls = []
    monkeypatch.setattr(torch, "compile", lambda find, **_: lambda _: calls.append("run") or [])
    mark = partial(calls.append, "step")
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", mark)
    compiled = compile_for_each_size(None, torch.device("cuda"))
    compiled(torch.zeros(1))
    compiled(torch.zeros(1))
    compile_for_each_size(None, torch.device("cpu"))(torch.zeros(1))
    assert calls == ["step", "run", "step", "run", "run"]


@pytest.mark.parametrize(("precision", "times"), [("float32", 0), ("bfloat16", 1)])
def test_tf32_goes_with_a_precision_below_float32(monkeypatch, precision, times):
    devices = []
    monkeypatch.setattr(optimize, "allow_tf32", devices.append)
    prepare(detector(), precision=precision)
    assert devices == [CPU] * times


def test_one_line_of_the_log_says_what_is_on(caplog):
    with caplog.at_level(logging.INFO, "onenet"):
        prepare(detector(), precision="bfloat16")
        prepare(detector(), fuse=False)
    assert [r.getMessage() for r in caplog.records] == [
        "Inference on cpu: batch norms folded, channels_last, bfloat16",
        "Inference on cpu: as in training, float32",
    ]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_logits_are_those_of_the_head_without_a_copy(precision):
    given = prepare(detector(), precision=precision)
    seen = []
    given.head.cls_score.register_forward_hook(lambda _, __, maps: seen.append(maps))
    with torch.inference_mode():
        logits = given.predict(IMAGES).logits
    assert logits.data_ptr() == seen[0].data_ptr() and logits.is_contiguous()
    assert torch.equal(logits[0].T.reshape(2, 16, 16), seen[0][0])


@pytest.mark.parametrize("k", [1, 10, 100])
def test_the_best_of_bfloat16_logits_are_those_of_their_values(k):
    logits = torch.randn(2, 50, 7, generator=torch.Generator().manual_seed(k)).bfloat16()
    best, samples, labels = top_k(logits, k)
    expected = logits.float().flatten(1).topk(k, dim=1).values
    assert torch.equal(best.float(), expected)
    at = torch.gather(logits.flatten(1), 1, samples * 7 + labels)
    assert torch.equal(at, best)  # equal scores may stand in another order
    boxes = torch.rand(2, 50, 4)
    _, scores, _ = best_detections(Predictions(logits, boxes, boxes[0], torch.zeros(50)), k)
    assert scores.dtype == torch.float32 and torch.equal(scores, expected.sigmoid())


def test_images_do_not_depend_on_those_that_they_come_with():
    given = detector()
    together = detections(given)
    for i, one in enumerate(IMAGES):
        (alone,) = detections(given, [one])
        close(together[i].boxes, alone.boxes, rtol=1e-5, atol=1e-4)
        assert torch.equal(together[i].labels, alone.labels)
    assert detections(given, []) == []
