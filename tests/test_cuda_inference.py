"""Detection on a card: every precision, CUDA graphs, and results that stay."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from helpers.cuda import DEVICE, ON_CARD, exact, needs_card
from helpers.small_detector import image, model

from onenet import Detections
from onenet.detector import OneNet
from onenet.heads.deconv import DeconvHead
from onenet.inference.optimize import prepare
from onenet.inference.postprocess import to_image

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


@pytest.mark.parametrize("compile", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("dcn", [False, True], ids=["plain", "dcn"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_results_stay_when_the_next_call_comes(precision, dcn, compile):
    """A CUDA graph writes each result over the last one."""
    torch._dynamo.reset()
    given = prepare(detector(dcn).to(DEVICE), precision=precision, compile=compile)
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
def test_detection_can_be_captured_in_a_graph(precision, dcn):
    given = prepare(detector(dcn).to(DEVICE), precision=precision)
    with torch.inference_mode():
        batch = given.batch([i.to(DEVICE) for i in IMAGES])
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                expected = [tensor.clone() for tensor in given.find(batch)]
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = given.find(batch)
        for tensor in found:
            tensor.zero_()
        graph.replay()
        torch.cuda.synchronize()
    torch.testing.assert_close(found[1], expected[1], rtol=1e-2, atol=1e-2)
    assert found[0].shape == expected[0].shape and found[0].abs().sum() > 0


def test_detections_are_scaled_and_clipped_on_the_card():
    boxes = torch.tensor([[-5.0, 2.0, 10.0, 99.0], [3.0, 3.0, 3.0, 9.0]], device=DEVICE)
    given = Detections(boxes, torch.ones(2, device=DEVICE), torch.arange(2, device=DEVICE))
    found = to_image(given, (32, 40), (64, 120))
    assert found.boxes.device.type == DEVICE.type and found.labels.tolist() == [0]
    assert found.boxes.tolist() == [[0.0, 4.0, 30.0, 64.0]]
    assert given.boxes[0, 0] == -5.0
