"""What runs on a card, traced without one: no operator mixes devices, and the host waits nowhere.

Fake tensors have devices, dtypes and shapes. An operator that mixes devices, or has no kernel for a
dtype, fails as on a card. A wait is an operator whose result the host must know, or a copy that
blocks; it may occur only where the test says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.fake_cuda import UNKNOWN, Waits, fake_cuda
from helpers.project import ROOT
from torch import Tensor, nn

from onenet import Detections, Predictions, Targets
from onenet.assignment.registry import MATCHER_REGISTRY
from onenet.detector import DenseDetector
from onenet.inference.optimize import prepare
from onenet.inference.postprocess import per_image, to_image
from onenet.lightning.build import build_detector
from onenet.lightning.config import load_cfg
from onenet.lightning.trainer import Trainer
from onenet.ops.focal import _SparseFocalLoss
from onenet.ops.memory_format import memory_format
from onenet.training.ema import ModelEMA
from onenet.training.guard import Guard
from onenet.training.optim import clip_gradients
from onenet.training.step import train_step

CUDA = torch.device("cuda")
OURS, RIVALS = ROOT / "projects/OneNet/configs", ROOT / "configs/baselines"
HEADS = {
    "deconv": (OURS / "onenet.res18.nodcn.yaml", []),
    "dcn": (OURS / "onenet.res18.dcn.yaml", []),
    "stages": (OURS / "onenet.res18.nodcn.yaml", ["MODEL.OneNet.NUM_HEADS", 3]),
    "fcos": (OURS / "onenet.fcos.res50.yaml", ["MODEL.OneNet.NUM_CONV", 1]),
    "retinanet": (OURS / "onenet.retinanet.res50.yaml", ["MODEL.OneNet.NUM_CONV", 1]),
    "centernet": (RIVALS / "centernet.res18.nodcn.yaml", []),
    "yolov1": (RIVALS / "yolov1.res18.yaml", ["MODEL.YOLOv1.HIDDEN", 16]),
}
WITHOUT_NMS = [head for head in HEADS if head != "yolov1"]
SMALL = ["MODEL.DEVICE", "cuda", "MODEL.WEIGHTS", "", "MODEL.RESNETS.DEPTH", 18]
SMALL += ["MODEL.RESNETS.RES2_OUT_CHANNELS", 64]
CHANNELS = {"res2": 64, "res3": 128, "res4": 256, "res5": 512}
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
HUNGARIAN = ["MODEL.OneNet.MATCHER", "hungarian"]


@pytest.fixture(autouse=True)
def _on_fake_cuda() -> Iterator[None]:
    with fake_cuda():
        yield


class Maps(nn.Module):
    """Stands in for a backbone, with as few operators as give its maps."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = names
        for name in names:
            self.add_module(name, nn.Conv2d(3, CHANNELS.get(name, 256), kernel_size=1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        strides = {name: 2 ** int(name[-1]) for name in self.names}
        return {n: getattr(self, n)(F.avg_pool2d(x, s, ceil_mode=True)) for n, s in strides.items()}


def build(head: str, *opts: Any, whole: bool = False) -> tuple[Any, DenseDetector]:
    """The config and the model of a head, in training on the card; ``whole`` with its backbone."""
    file, changes = HEADS[head]
    cfg = load_cfg(file, [*SMALL, *changes, *opts])
    torch.manual_seed(0)
    model = build_detector(cfg).train()
    if not whole:
        model.backbone = Maps(model.in_features)
    return cfg, model.to(CUDA, memory_format=memory_format(CUDA))


def images(*sizes: tuple[int, int]) -> list[Tensor]:
    """As a loader gives them: uint8 on the CPU."""
    return [torch.zeros(3, *size, dtype=torch.uint8) for size in sizes]


def targets(*counts: int, size: tuple[int, int] = (64, 96)) -> list[Targets]:
    """Of one image for each number of objects, on the CPU."""
    return [Targets(torch.zeros(n, 4), torch.zeros(n, dtype=torch.int64), size) for n in counts]


MIXED = [(64, 96), (50, 70)]


def step(
    cfg: Any, model: DenseDetector, precision: str, objects: tuple[int, ...]
) -> tuple[Waits, dict[str, Tensor]]:
    """A step as the embedded engine runs it, with the average of the weights; its waits.

    Without autograd, which asks the driver for the card's streams, and without the fused update,
    whose kernel writes: gradients are made up, and clipped.
    """
    dtype = PRECISIONS[precision]
    optimizer = SimpleNamespace(
        defaults={"fused": True}, zero_grad=lambda **_: None, step=lambda: None
    )
    guard, ema = Guard(optimizer, model), ModelEMA(model)
    batch = list(zip(images(*MIXED), targets(*objects), strict=True))

    def forward(items: Any) -> dict[str, Tensor]:
        with torch.autocast("cuda", dtype, enabled=dtype is not None):
            return model([image for image, _ in items], [target for _, target in items])

    def backward(_: Tensor) -> None:
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter)
        for kind in ("full_model", "norm", "value"):
            clip = {"CLIP_TYPE": kind, "CLIP_VALUE": 1.0, "NORM_TYPE": 2.0}
            clip_gradients(SimpleNamespace(**clip), model)

    with torch.no_grad(), Waits() as waits:
        values = train_step(
            cfg,
            model,
            guard,
            batch,
            count=lambda item: len(item[1]),
            forward=forward,
            backward=backward,
        )
        ema.update(model, guard.good)
    return waits, values


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("head", HEADS)
def test_a_training_step_waits_nowhere(head, precision):
    cfg, model = build(head)
    for objects in ((3, 1), (0, 2), (0, 0)):
        waits, values = step(cfg, model, precision, objects)
        assert waits.found == []
        assert all(v.device.type == "cuda" and v.dtype == torch.float32 for v in values.values())


def test_the_focal_loss_keeps_its_gradient_without_a_wait():
    """And scales it in the backward pass."""
    logits = torch.zeros(2, 9, 3, device=CUDA, dtype=torch.float16)
    positives = [torch.zeros(4, dtype=torch.int64, device=CUDA)] * 3
    counted = torch.ones(4, dtype=torch.bool, device=CUDA)
    context = SimpleNamespace(needs_input_grad=[True] * 8)
    context.save_for_backward = lambda kept: setattr(context, "saved_tensors", (kept,))
    with torch.no_grad(), Waits() as waits:
        loss = _SparseFocalLoss.forward(context, logits, counted, 0.25, 2.0, True, *positives)
        gradient, *_ = _SparseFocalLoss.backward(context, loss)
    assert waits.found == [] and gradient.shape == logits.shape and gradient.dtype == logits.dtype


@pytest.mark.parametrize("head", ["deconv", "fcos"])
def test_a_backbone_waits_nowhere(head):
    """Nor do frozen layers, or a batch in parts."""
    cfg, model = build(head, "SOLVER.ACCUMULATE", 2, "MODEL.BACKBONE.FREEZE_AT", 2, whole=True)
    waits, _ = step(cfg, model, "bfloat16", (3, 1))
    assert waits.found == []


@pytest.mark.parametrize(("key", "value"), [("LOCATION_COST", "predefined"), ("MATCHER", "centre")])
@pytest.mark.parametrize("head", ["deconv", "fcos", "retinanet"])
def test_an_assignment_by_place_waits_nowhere(head, key, value):
    waits, _ = step(*build(head, f"MODEL.OneNet.{key}", value), "float32", (3, 1))
    assert waits.found == []


@pytest.mark.parametrize("head", ["deconv", "retinanet"])
def test_hungarian_matching_waits_for_its_costs_alone(head):
    """scipy solves it on the CPU."""
    cfg, model = build(head, *HUNGARIAN)
    with torch.no_grad(), Waits() as waits, pytest.raises(UNKNOWN):
        model(images(*MIXED), targets(3, 1))
    assert waits.found == ["_local_scalar_dense in _choose_by_image of assignment/matchers.py"]


def test_the_one_to_many_branch_waits_once_for_how_many_samples_it_trains():
    """Not once an image."""
    c = build("deconv")[0]
    matcher = MATCHER_REGISTRY.get("alignment")(c)
    boxes, labels = torch.zeros(2, 60, 4, device=CUDA), torch.zeros(60, device=CUDA).long()
    predictions = Predictions(torch.zeros(2, 60, 3, device=CUDA), boxes, boxes[0], labels)
    with torch.no_grad(), Waits() as waits, pytest.raises(UNKNOWN):
        matcher(predictions, targets(3, 1))
    assert waits.found == ["nonzero in _choose_by_image of assignment/one_to_many.py"]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("head", WITHOUT_NMS)
def test_detection_waits_nowhere(head, precision):
    _, model = build(head)
    for fuse in (False, True):
        prepare(model, fuse=fuse, precision=precision)
        batch = [image.to(CUDA) for image in images((64, 96), (64, 96), (32, 64))]
        with torch.no_grad(), Waits() as waits:
            best = model.find(model.batch(batch))
            found = per_image(*best)
        assert [t.dtype for t in best] == [torch.float32, torch.float32, torch.int64]
        assert len(found[0]) == model.max_detections and waits.found == []
    if head != "centernet":
        with torch.no_grad(), Waits() as waits:
            assert len(model(batch)) == len(batch)
        assert waits.found == []


def test_centernet_reads_how_many_peaks_there_are_once_for_a_batch():
    _, model = build("centernet")
    batch = [image.to(CUDA) for image in images(*[(64, 96)] * 4)]
    with torch.no_grad(), Waits() as waits, pytest.raises(UNKNOWN):
        model.eval()(batch)
    assert waits.found == ["_local_scalar_dense in _detect of baselines/centernet.py"]


def test_nms_waits_for_what_it_keeps():
    boxes, scores = torch.zeros(2, 9, 4, device=CUDA), torch.zeros(2, 9, device=CUDA)
    labels = torch.zeros(2, 9, dtype=torch.int64, device=CUDA)
    with Waits() as waits, pytest.raises(UNKNOWN):
        per_image(boxes, scores, labels, nms_iou=0.5)
    assert set(waits.found) <= {"_to_copy in <listcomp> of inference/postprocess.py"}


def test_detections_are_scaled_with_one_wait():
    """That of the mask."""
    boxes, scores = torch.zeros(9, 4, device=CUDA), torch.zeros(9, device=CUDA)
    found = Detections(boxes, scores, torch.zeros(9, dtype=torch.int64, device=CUDA))
    with Waits() as waits, pytest.raises(UNKNOWN):
        to_image(found, (64, 96), (128, 192))
    assert waits.found == ["nonzero in to_image of inference/postprocess.py"]


def test_images_are_sent_before_several_processes_share_them():
    """DistributedDataParallel would move each with a copy that blocks."""
    given = []
    fabric = SimpleNamespace(device=CUDA, autocast=nullcontext)
    trainer = SimpleNamespace(fabric=fabric, parallel=lambda *args: given.append(args))
    items = [SimpleNamespace(image=images((64, 96))[0], targets=targets(2)[0])]
    with Waits() as waits:
        Trainer._forward(trainer, items)
    assert [image.device.type for image in given[0][0]] == ["cuda"] and waits.found == []
