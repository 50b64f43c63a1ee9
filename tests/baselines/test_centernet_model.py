"""CenterNet: peaks by hand, the head, and the whole model."""

from __future__ import annotations

import pytest
import torch
from helpers.centernet_example import maps, targets
from helpers.configs import CONFIGS, ROOT, flat
from torch import nn

from onenet.baselines.centernet import (
    CenterCriterion,
    CenterHead,
    CenterMaps,
    CenterNet,
    peaks,
)
from onenet.lightning.build import build_detector
from onenet.lightning.config import load_cfg
from onenet.structures import Detections

close = torch.testing.assert_close


# Peaks.


def detections(given: CenterMaps, kernel=3, k=100) -> list[Detections]:
    """Of a CenterNet whose network gives ``given``."""

    class Given(nn.Module):
        def forward(self, features):
            return given

    model = CenterNet(
        backbone=nn.Identity(),
        head=Given(),
        criterion=CenterCriterion(),
        in_features=[],
        pixel_mean=[0, 0, 0],
        pixel_std=[1, 1, 1],
        max_detections=k,
        peak_kernel=kernel,
    ).eval()
    with torch.inference_mode():
        return model([torch.zeros(3, 32, 32, dtype=torch.uint8)])


def scene():
    """Class 0: 2.0 in cell (3, 2), 1.0 beside it and 0.5 in (7, 7); class 1: 1.5 in (3, 2)."""
    given = maps()
    with torch.no_grad():
        given.logits.fill_(-5.0)
        # Nowhere level, so that nothing but the peaks is a maximum.
        given.logits.add_(-torch.arange(64.0).reshape(8, 8) / 10)
        given.logits[0, 0, 2, 3], given.logits[0, 0, 2, 4] = 2.0, 1.0
        given.logits[0, 0, 7, 7], given.logits[0, 1, 2, 3] = 0.5, 1.5
        given.sizes[0, :, 2, 3] = torch.tensor([3.0, 2.0])
        given.offsets[0, :, 2, 3] = torch.tensor([0.5, 0.25])
        given.sizes[0, :, 7, 7] = torch.tensor([-1.0, 2.0])
    return given


def test_peaks_by_hand():
    """Centre (3.5, 2.25) · 4 px, half of 12 × 8 px around it."""
    found = detections(scene())[0][:3]
    close(found.scores, torch.tensor([2.0, 1.5, 0.5]).sigmoid())
    assert found.labels.tolist() == [0, 1, 0]
    box = [14 - 6, 9 - 4, 14 + 6, 9 + 4]
    close(found.boxes[:2], torch.tensor([box, box]).float())
    # A negative width is none.
    close(found.boxes[2], torch.tensor([28.0, 24.0, 28.0, 32.0]))


def test_without_peaks_a_neighbour_is_a_detection_too():
    assert len(detections(scene(), kernel=3)[0]) < 128
    found = detections(scene(), kernel=1, k=200)[0]
    assert len(found) == 128
    close(found.scores[:4], torch.tensor([2.0, 1.5, 1.0, 0.5]).sigmoid())


def test_level_maps_are_all_peaks_and_k_limits_them():
    assert len(detections(maps(), k=100)[0]) == 100
    assert len(detections(maps(classes=1), k=100)[0]) == 64


def test_peaks_are_predictions_of_every_cell():
    found = peaks(maps(classes=3, height=4, width=6, batch=2))
    assert found.logits.shape == (2, 24, 3) and found.boxes.shape == (2, 24, 4)
    assert found.samples[7].tolist() == [6, 6, 6, 6]


@pytest.mark.parametrize("kernel", [0, 2, -1])
def test_a_neighbourhood_has_a_middle(kernel):
    with pytest.raises(ValueError, match="MODEL.CenterNet.PEAK_KERNEL"):
        detections(maps(), kernel=kernel)


# The head and the whole model.


def head(classes=3):
    torch.manual_seed(0)
    return CenterHead(
        in_channels=[8] * 4,
        stride=4,
        num_classes=classes,
        deconv_channels=[8] * 4,
        dcn=False,
        channels=8,
    )


def test_head_gives_maps_of_the_finest_size_that_start_at_the_prior():
    inputs = [torch.randn(2, 8, 64 // s, 96 // s) for s in (4, 8, 16, 32)]
    found = head()(inputs)
    assert found.logits.shape == (2, 3, 16, 24) and found.stride == 4
    assert found.sizes.shape == found.offsets.shape == (2, 2, 16, 24)
    silent = head()
    for parameter in silent.parameters():
        if parameter.dim() > 1:
            nn.init.zeros_(parameter)
    close(silent(inputs).logits.sigmoid(), torch.full((2, 3, 16, 24), 0.1))


class Backbone(nn.Module):
    """Maps of strides 4, 8, 16 and 32 by single convolutions."""

    def __init__(self):
        super().__init__()
        strides = (4, 2, 2, 2)
        self.layers = nn.ModuleList(
            nn.Conv2d(3 if i == 0 else 8, 8, stride + 1, stride, padding=stride // 2)
            for i, stride in enumerate(strides)
        )

    def forward(self, x):
        found = {}
        for name, layer in zip("abcd", self.layers, strict=True):
            x = found[name] = layer(x).relu()
        return found


@pytest.fixture
def model():
    torch.manual_seed(0)
    return CenterNet(
        backbone=Backbone(),
        head=head(classes=1),
        criterion=CenterCriterion(),
        in_features="abcd",
        pixel_mean=[128, 128, 128],
        pixel_std=[60, 60, 60],
    )


def test_a_model_learns_an_image_by_heart(model):
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    goal = targets([8, 8, 40, 32], [36, 40, 60, 64], size=(64, 64))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
    for _ in range(40):
        losses = model.train()([image], [goal])
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    found = model.eval()([image])[0]
    order = found.boxes[:2, 0].argsort()
    assert (found.boxes[:2][order] - goal.boxes).abs().max() < 4
    assert found.scores[1] > 3 * found.scores[2]


def test_images_in_a_batch_do_not_meet(model):
    images = [torch.randint(0, 256, (3, 64, w), dtype=torch.uint8) for w in (64, 64)]
    model.eval()
    with torch.inference_mode():
        together, alone = model(images), [model([image])[0] for image in images]
    for a, b in zip(together, alone, strict=True):
        close(a.boxes, b.boxes, rtol=1e-4, atol=1e-3)
        close(a.scores, b.scores, rtol=1e-4, atol=1e-5)


def test_training_needs_targets(model):
    with pytest.raises(ValueError, match="targets"):
        model.train()([torch.zeros(3, 64, 64, dtype=torch.uint8)])


@pytest.mark.parametrize("name", ["res18.nodcn", "res50.dcn"])
def test_the_config_differs_from_onenets_in_the_method_alone(name):
    ours = dict(flat(load_cfg(CONFIGS / f"onenet.{name}.yaml")))
    theirs = dict(flat(load_cfg(ROOT / "configs" / "baselines" / f"centernet.{name}.yaml")))
    assert {key: theirs[key] for key in theirs if theirs[key] != ours[key]} == {
        "MODEL.META_ARCHITECTURE": "CenterNet",
        "MODEL.OneNet.PRIOR_PROB": 0.1,
        "OUTPUT_DIR": theirs["OUTPUT_DIR"],
    }


def test_keys_reach_the_model():
    """The neck's are OneNet's; with the same backbone and neck, they have the same parameters."""
    file = ROOT / "configs" / "baselines" / "centernet.res18.nodcn.yaml"
    opts = [
        "MODEL.OneNet.NUM_CLASSES", "3", "MODEL.OneNet.DECONV_CHANNEL", "[512, 16, 16, 16]",
        "MODEL.OneNet.PRIOR_PROB", "0.2", "MODEL.CenterNet.CHANNELS", "24",
        "MODEL.CenterNet.PEAK_KERNEL", "5", "MODEL.CenterNet.SIZE_WEIGHT", "0.5",
        "MODEL.CenterNet.OFFSET_WEIGHT", "2", "MODEL.DEVICE", "cpu",
    ]  # fmt: skip
    model = build_detector(load_cfg(file, opts))
    onenet = build_detector(load_cfg(CONFIGS / "onenet.res18.nodcn.yaml", opts))
    assert isinstance(model, CenterNet) and model.peak_kernel == 5
    assert (model.criterion.size_weight, model.criterion.offset_weight) == (0.5, 2.0)
    assert model.head.cls_score.weight.shape == (3, 24, 1, 1)
    close(model.head.cls_score.bias.sigmoid(), torch.full((3,), 0.2))

    def shared(state):
        return {k: v.shape for k, v in state.items() if k.startswith(("backbone.", "head.deconv."))}

    assert shared(model.state_dict()) == shared(onenet.state_dict())
