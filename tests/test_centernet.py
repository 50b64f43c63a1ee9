"""CenterNet: targets, losses and peaks by hand; what is unusual in a target."""

from __future__ import annotations

import math

import pytest
import torch
from config_helpers import CONFIGS, ROOT, flat
from torch import nn

from onenet.centernet import (
    CenterCriterion,
    CenterHead,
    CenterMaps,
    CenterNet,
    gaussian_radius,
    heat_loss,
    heat_map,
    peaks,
)
from onenet.engine.config import load_cfg
from onenet.engine.detector import build_detector
from onenet.structures import Detections, Targets

close = torch.testing.assert_close
LN2 = math.log(2)


def targets(*boxes, labels=None, size=(32, 32)):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    labels = [0] * len(boxes) if labels is None else labels
    return Targets(boxes, torch.tensor(labels, dtype=torch.int64), size)


def maps(classes=2, height=8, width=8, batch=1, stride=4):
    """All zero, with gradients."""

    def zeros(channels):
        return torch.zeros(batch, channels, height, width, requires_grad=True)

    return CenterMaps(zeros(classes), zeros(2), zeros(2), stride)


# The radius: three ways to move a box's corners by r, and the smallest root counts.


def radius_of_three(w, h, t):
    """The smallest root of CornerNet's three cases, as its code solves them."""
    cases = [
        (1, w + h, w * h * (1 - t) / (1 + t)),
        (4, 2 * (w + h), (1 - t) * w * h),
        (4 * t, -2 * t * (w + h), (t - 1) * w * h),
    ]
    return min((b + math.sqrt(b * b - 4 * a * c)) / 2 for a, b, c in cases)


@pytest.mark.parametrize("sides", [(10, 10), (3, 40), (100, 7), (1, 1), (250, 180)])
@pytest.mark.parametrize("overlap", [0.3, 0.5, 0.7, 0.9])
def test_the_radius_is_the_smallest_of_three_cases(sides, overlap):
    found = gaussian_radius(torch.tensor([sides], dtype=torch.float32), overlap)
    assert found.item() == math.floor(radius_of_three(*sides, overlap))


def test_radius_by_hand():
    """10 × 10: √(14² + 84) − 14 = 2.73; 20 × 5: √(17.5² + 84) − 17.5 = 2.25."""
    sizes = torch.tensor([[10.0, 10], [20, 5], [0, 0], [0, 9]])
    assert gaussian_radius(sizes).tolist() == [2, 2, 0, 0]


# The heat map.


def blob(radius):
    """A Gaussian's values on both sides of its centre; sigma is (2 · radius + 1) / 6."""
    sigma = (2 * radius + 1) / 6
    line = torch.tensor([math.exp(-(d**2) / (2 * sigma**2)) for d in range(-radius, radius + 1)])
    return line[:, None] * line


def test_a_gaussian_by_hand():
    """Radius 1, so sigma ½: e⁻² beside the centre, e⁻⁴ on the diagonal, 0 elsewhere."""
    rows, cells = torch.tensor([1]), torch.tensor([[3, 2]])
    heat = heat_map(rows, cells, torch.tensor([1.0]), (2, 5, 6))
    a, b = math.exp(-2), math.exp(-4)
    expected = torch.zeros(2, 5, 6)
    expected[1, 1:4, 2:5] = torch.tensor([[b, a, b], [a, 1, a], [b, a, b]])
    close(heat, expected)


def test_a_gaussian_is_cut_at_the_maps_edge_and_radius_0_is_one_cell():
    heat = heat_map(
        torch.tensor([0, 0]), torch.tensor([[0, 0], [5, 4]]), torch.tensor([2.0, 0.0]), (1, 5, 6)
    )
    expected = torch.zeros(5, 6)
    expected[:3, :3] = blob(2)[2:, 2:]
    expected[4, 5] = 1
    close(heat[0], expected)


def test_where_gaussians_overlap_the_larger_value_stays():
    rows, cells = torch.tensor([0, 0]), torch.tensor([[2, 2], [4, 2]])
    heat = heat_map(rows, cells, torch.tensor([2.0, 1.0]), (1, 5, 8))[0]
    assert heat[2, 2] == heat[2, 4] == 1
    sigmas = (5 / 6, 0.5)
    close(heat[2, 3].item(), max(math.exp(-1 / (2 * sigma**2)) for sigma in sigmas))
    other = heat_map(rows.flip(0), cells.flip(0), torch.tensor([1.0, 2.0]), (1, 5, 8))[0]
    assert torch.equal(heat, other)


def test_no_object_no_heat():
    none = torch.empty(0, dtype=torch.int64)
    assert not heat_map(none, none.reshape(0, 2), torch.empty(0), (2, 3, 4)).any()


# Losses.


def test_heat_loss_by_hand():
    """Logit 0 everywhere: ¼ · ln 2 at a centre and far from it, (1 − ½)⁴ of that at heat ½."""
    heat = torch.tensor([1.0, 0.0, 0.5])
    close(heat_loss(torch.zeros(3), heat), torch.tensor((2 + 1 / 16) / 4 * LN2))
    # Probability ¾ at a centre, at heat 0 and at heat ½.
    logits = torch.full((3,), math.log(3))
    parts = [-math.log(0.75) / 16, -math.log(0.25) * 9 / 16, -math.log(0.25) * 9 / 256]
    close(heat_loss(logits, heat), torch.tensor(sum(parts)))


def test_heat_loss_stays_finite_with_sure_predictions():
    logits = torch.tensor([-200.0, 200.0, -200.0, 200.0], requires_grad=True)
    loss = heat_loss(logits, torch.tensor([1.0, 1.0, 0.0, 0.0]))
    loss.backward()
    close(loss, torch.tensor(400.0))
    assert logits.grad.isfinite().all()


def test_losses_of_one_object_by_hand():
    """A box of 12 × 8 px around (14, 10): 3 × 2 cells, centre (3.5, 2.5), cell (3, 2)."""
    given = maps()
    losses = CenterCriterion(size_weight=0.1, offset_weight=1.0)(given, [targets([8, 6, 20, 14])])
    close(losses["loss_size"], torch.tensor(0.1 * (3 + 2)))
    close(losses["loss_offset"], torch.tensor(0.5 + 0.5))
    # Radius 0: one centre among 2 · 8 · 8 cells, all of probability ½.
    close(losses["loss_heat"], torch.tensor(128 / 4 * LN2))
    sum(losses.values()).backward()
    assert (given.logits.grad < 0).nonzero().tolist() == [[0, 0, 2, 3]]
    assert given.sizes.grad.nonzero().tolist() == [[0, 0, 2, 3], [0, 1, 2, 3]]
    assert given.offsets.grad.nonzero().tolist() == [[0, 0, 2, 3], [0, 1, 2, 3]]


def test_the_gaussian_of_a_large_object_lowers_the_loss_around_its_centre():
    """40 × 40 px are 10 × 10 cells: radius 2."""
    given = maps(classes=1, height=16, width=16)
    loss = CenterCriterion()(given, [targets([12, 12, 52, 52])])["loss_heat"]
    around = ((1 - blob(2)) ** 4).sum().item() + 1
    close(loss, torch.tensor((16 * 16 - 25 + around) / 4 * LN2))


def test_a_perfect_prediction_has_no_box_loss():
    given = maps()
    with torch.no_grad():
        given.sizes[0, :, 2, 3] = torch.tensor([3.0, 2.0])
        given.offsets[0, :, 2, 3] = torch.tensor([0.5, 0.5])
    losses = CenterCriterion()(given, [targets([8, 6, 20, 14])])
    assert losses["loss_size"].item() == losses["loss_offset"].item() == 0


def test_losses_are_means_over_the_objects_of_all_images():
    given = maps(batch=2)
    goals = [targets([8, 6, 20, 14], [8, 6, 20, 14], labels=[0, 1]), targets([0, 0, 4, 8])]
    losses = CenterCriterion()(given, goals)
    close(losses["loss_size"], torch.tensor(0.1 * (5 + 5 + 3) / 3))
    close(losses["loss_heat"], torch.tensor(256 / 4 * LN2 / 3))


def test_two_objects_in_one_cell_both_train_its_size():
    """Of one class: one centre. Sizes 2 × 2 and 1 × 3 cells in cell (2, 2) of a 3 × 4 size."""
    given = maps()
    with torch.no_grad():
        given.sizes[0, :, 2, 2] = torch.tensor([3.0, 4.0])
    goal = targets([6, 6, 14, 14], [8, 4, 12, 16])
    losses = CenterCriterion(size_weight=1.0)(given, [goal])
    close(losses["loss_size"], torch.tensor(((1 + 2) + (2 + 1)) / 2))
    sum(losses.values()).backward()
    assert (given.logits.grad < 0).nonzero().tolist() == [[0, 0, 2, 2]]
    assert given.sizes.grad[0, :, 2, 2].tolist() == [1.0, 1.0]


def test_two_objects_of_different_classes_in_one_cell_are_two_centres():
    given = maps()
    goal = targets([6, 6, 14, 14], [8, 4, 12, 16], labels=[0, 1])
    CenterCriterion()(given, [goal])["loss_heat"].backward()
    assert (given.logits.grad < 0).nonzero().tolist() == [[0, 0, 2, 2], [0, 1, 2, 2]]


def test_without_targets_all_is_background():
    given = maps(batch=2)
    losses = CenterCriterion()(given, [targets(), targets()])
    sum(losses.values()).backward()
    assert losses["loss_size"].item() == losses["loss_offset"].item() == 0
    close(losses["loss_heat"], torch.tensor(256 / 4 * LN2))
    assert (given.logits.grad > 0).all() and not given.sizes.grad.any()


@pytest.mark.parametrize(
    "box",
    [[8, 6, 8, 6], [8, 6, 20, 6], [20, 14, 8, 6], [-60, -80, -20, -4], [100, 100, 300, 200]],
    ids=["point", "line", "turned round", "outside", "beyond"],
)
def test_degenerate_and_outlying_boxes_are_finite(box):
    given = maps()
    losses = CenterCriterion()(given, [targets(box, [8, 6, 20, 14])])
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(m.grad.isfinite().all() for m in (given.logits, given.sizes, given.offsets))


def test_a_centre_on_the_lower_right_edge_counts_for_the_last_cell():
    given = maps()
    CenterCriterion()(given, [targets([24, 24, 40, 40])])["loss_heat"].backward()
    assert (given.logits.grad < 0).nonzero().tolist() == [[0, 0, 7, 7]]


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
