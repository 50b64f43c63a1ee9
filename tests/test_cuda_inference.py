"""Detection on a card: every precision, CUDA graphs, and results that stay."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from helpers.cuda import DEVICE, ON_CARD, exact, needs_card
from helpers.small_detector import image, model

from onenet import Detections
from onenet.backbones.resnet import ResNet
from onenet.detector import OneNet
from onenet.heads.deconv import DeconvHead
from onenet.inference.fuse import fold_batch_norms
from onenet.inference.optimize import PRECISIONS as PRECISION_TYPES
from onenet.inference.optimize import prepare
from onenet.inference.postprocess import to_image
from onenet.ops.convolution import use_one_kernel

pytestmark = needs_card
IMAGES = [image(64, 96, seed) for seed in range(3)]


@pytest.fixture(autouse=True)
def _exact() -> Iterator[None]:
    with exact():
        yield


def detector(dcn: bool = False) -> OneNet:
    """On the CPU, with scores far enough from each other and boxes of some size."""
    torch.manual_seed(0)
    head = DeconvHead(
        in_channels=[4] * 4, stride=4, num_classes=2, deconv_channels=[4] * 4, dcn=dcn
    )
    with torch.no_grad():
        head.cls_score.weight.normal_(std=0.02)
        head.ltrb_pred.bias.fill_(4.0)
        if dcn:
            for name, parameter in head.named_parameters():
                if "dcn_offset" in name:
                    parameter.mul_(0.2)
    return model(head=head).eval()


@torch.inference_mode()
def detections(of: OneNet, images: list[torch.Tensor]) -> list[Detections]:
    return [found.to("cpu") for found in of(images)]


@pytest.mark.parametrize("dcn", [False, True], ids=["plain", "dcn"])
def test_float32_finds_what_the_cpu_finds(dcn):
    plain = detector(dcn)
    expected = detections(plain, IMAGES)
    found = detections(prepare(copy.deepcopy(plain).to(DEVICE)), IMAGES)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.scores, other.scores, rtol=1e-3, atol=1e-4)
        for k in range(20):  # of equal scores, either may come first
            near = (other.boxes - one.boxes[k]).abs().amax(dim=1) < 0.1
            assert (near & (other.labels == one.labels[k])).any()


PRECISIONS = ["float32", "bfloat16", *(["float16"] if ON_CARD else [])]


WAYS = {"eager": {}, "compiled": {"compile": True}, "graphs": {"cuda_graphs": True}}


# Compiling takes half a minute each.
COMPILED = [("bfloat16", True), *([("float16", False)] if ON_CARD else [])]


@pytest.mark.parametrize("way", WAYS if ON_CARD else ["eager", "compiled"])
@pytest.mark.parametrize("dcn", [False, True], ids=["plain", "dcn"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_results_stay_when_the_next_call_comes(precision, dcn, way):
    """A CUDA graph writes each result over the last one."""
    if way == "compiled" and (precision, dcn) not in COMPILED:
        pytest.skip("compiled in other cases")
    torch._dynamo.reset()
    given = prepare(detector(dcn).to(DEVICE), precision=precision, **WAYS[way])
    with torch.inference_mode():
        first = given([IMAGES[0].to(DEVICE)])[0]
        before = copy.deepcopy(first)
        for _ in range(3):  # a graph is recorded in the second call, and replayed after it
            others = given([IMAGES[1].to(DEVICE)])
        again = given([IMAGES[0].to(DEVICE)])[0]
    assert first.boxes.dtype == first.scores.dtype == torch.float32
    for name in ("boxes", "scores", "labels"):
        assert torch.equal(getattr(first, name), getattr(before, name))
    torch.testing.assert_close(again.scores, first.scores, rtol=1e-2, atol=1e-2)
    assert not torch.equal(others[0].boxes, first.boxes)
    torch._dynamo.reset()


@pytest.mark.skipif(not ON_CARD, reason="CPUs have no graphs")
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("dcn", [False, True], ids=["plain", "dcn"])
def test_graphs_find_what_the_model_finds(precision, dcn):
    """In batches of several sizes, in turn, with and without inference mode."""
    plain = prepare(detector(dcn).to(DEVICE), precision=precision)
    replayed = prepare(detector(dcn).to(DEVICE), precision=precision, cuda_graphs=True)
    batches = [IMAGES[:1], IMAGES, [image(32, 64, 7)], IMAGES[1:2], IMAGES]
    for number, images in enumerate(batches):
        with torch.inference_mode() if number % 2 else torch.no_grad():
            given = [one.to(DEVICE) for one in images]
            found, expected = replayed(given), plain(given)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one.scores, other.scores, rtol=1e-2, atol=1e-2)
            assert one.boxes.abs().sum() > 0
    assert len(replayed.find._captured) == 3


@pytest.mark.skipif(not ON_CARD, reason="cuDNN's kernels")
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("depth", [18, 50])
def test_convolutions_with_additions_and_relus_in_one_kernel(depth, precision):
    torch.manual_seed(0)
    backbone = ResNet(depth=depth).eval()
    fold_batch_norms(backbone.requires_grad_(False))
    backbone = backbone.to(DEVICE, PRECISION_TYPES[precision], memory_format=torch.channels_last)
    x = torch.randn(2, 3, 96, 128, device=DEVICE, dtype=PRECISION_TYPES[precision])
    x = x.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        expected = backbone(x)
        use_one_kernel(backbone)
        found = backbone(x)
    for name, maps in found.items():
        assert maps.is_contiguous(memory_format=torch.channels_last)
        error = (maps - expected[name]).float().norm() / expected[name].float().norm()
        assert error < 0.02, name


def test_detections_are_scaled_and_clipped_on_the_card():
    boxes = torch.tensor([[-5.0, 2.0, 10.0, 99.0], [3.0, 3.0, 3.0, 9.0]], device=DEVICE)
    given = Detections(boxes, torch.ones(2, device=DEVICE), torch.arange(2, device=DEVICE))
    found = to_image(given, (32, 40), (64, 120))
    assert found.boxes.device.type == DEVICE.type and found.labels.tolist() == [0]
    assert found.boxes.tolist() == [[0.0, 4.0, 30.0, 64.0]]
    assert given.boxes[0, 0] == -5.0
