"""How the Detectron2 engine feeds a card, without one."""

from __future__ import annotations

import pytest

pytest.importorskip("detectron2")

from types import SimpleNamespace

import torch
from helpers.fake_cuda import UNKNOWN, Waits, fake_cuda
from torch.utils.data import DataLoader

from onenet import Detections
from onenet.d2.loader import _ready
from onenet.d2.meta_arch import _to_instances
from onenet.d2.steps import _sent

CUDA = torch.device("cuda")


def test_images_are_sent_before_several_processes_share_them():
    """DistributedDataParallel would move each with a copy that blocks."""
    with fake_cuda(), Waits() as waits:
        data = [{"image": torch.zeros(3, 8, 8, dtype=torch.uint8), "height": 8}]
        (sent,) = _sent(data, CUDA)
    assert sent["image"].device.type == "cuda" and sent["height"] == 8
    assert data[0]["image"].device.type == "cpu" and waits.found == []


@pytest.mark.parametrize(
    ("device", "there", "pins"),
    [("cuda", True, True), ("cuda", False, False), ("cpu", True, False)],
)
def test_loaders_pin_memory_for_cuda(monkeypatch, device, there, pins):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    cfg = SimpleNamespace(MODEL=SimpleNamespace(DEVICE=device))
    inner = DataLoader([1])
    assert _ready(inner, cfg).loader is inner and inner.pin_memory == pins
    inner = DataLoader([1])
    grouping = SimpleNamespace(dataset=inner)  # Detectron2's, by aspect ratio
    assert _ready(grouping, cfg) is grouping and grouping.dataset.loader is inner
    assert inner.pin_memory == pins


def test_an_image_becomes_instances_with_one_wait():
    inputs = {"image": torch.zeros(3, 64, 96), "height": 128, "width": 192}
    with fake_cuda(), Waits() as waits, pytest.raises(UNKNOWN):
        boxes, scores = torch.zeros(9, 4, device=CUDA), torch.zeros(9, device=CUDA)
        labels = torch.zeros(9, dtype=torch.int64, device=CUDA)
        _to_instances(Detections(boxes, scores, labels), inputs)
    assert waits.found == ["nonzero in to_image of inference/postprocess.py"]
