"""Batches in parts: losses and gradients are those of the whole."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from helpers.configs import CONFIGS, refused
from torch import nn

from onenet.config.rules import check_shares
from onenet.errors import ConfigError
from onenet.lightning.build import build_detector
from onenet.lightning.config import get_cfg, load_cfg
from onenet.structures import Targets
from onenet.training.accumulation import forward_backward, shares, split

CPU = torch.device("cpu")
THIN = [
    "MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64",
    "MODEL.RESNETS.NORM", "FrozenBN", "MODEL.FPN.OUT_CHANNELS", "32",
    "MODEL.OneNet.CONV_CHANNELS", "64", "MODEL.OneNet.NUM_CONV", "1",
    "MODEL.OneNet.NUM_CLASSES", "3",
]  # fmt: skip


def test_parts_are_neighbours_of_equal_size():
    assert split([1, 2, 3, 4], 2) == [[1, 2], [3, 4]]
    assert split([1, 2, 3], 1) == [[1, 2, 3]]
    for batch, parts in (([1, 2, 3], 2), ([1], 2), ([], 1)):
        with pytest.raises(ValueError, match=f"a batch of {len(batch)} cannot be split"):
            split(batch, parts)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([3, 1], [3 / 4, 1 / 4]),
        # The losses of a part without targets are divided by 1, those of the whole by 4.
        ([4, 0], [1, 1 / 4]),
        ([0, 0], [1, 1]),
    ],
)
def test_shares_turn_a_parts_number_of_targets_into_that_of_the_whole(counts, expected):
    assert shares(counts, CPU).tolist() == expected


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """Every layer treats each image independently."""
    torch.manual_seed(0)
    cfg = load_cfg(CONFIGS / "onenet.fcos.res50.yaml", THIN)
    return build_detector(cfg).train()


def sample(targets: int, seed: int) -> tuple[torch.Tensor, Targets]:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (3, 64, 96), generator=generator, dtype=torch.uint8)
    corners = torch.rand(targets, 2, generator=generator) * 40
    boxes = torch.cat((corners, corners + 20), dim=1)
    return image, Targets(boxes, torch.randint(3, (targets,), generator=generator), (64, 96))


def gradients(model: nn.Module, batch: Sequence, parts: int) -> tuple[dict, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    groups = split(batch, parts)
    losses = forward_backward(
        model,
        groups,
        [sum(len(targets) for _, targets in group) for group in groups],
        forward=lambda group: model(*map(list, zip(*group, strict=True))),
        backward=torch.Tensor.backward,
    )
    flat = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return {name: loss.item() for name, loss in losses.items()}, torch.cat(flat)


@pytest.mark.parametrize("counts", [(2, 1, 0, 3), (5, 0, 0, 0), (0, 0, 0, 0)])
def test_gradients_in_parts_are_those_of_the_whole(model, counts):
    batch = [sample(count, seed) for seed, count in enumerate(counts)]
    whole, expected = gradients(model, batch, 1)
    assert expected.norm() > 0
    for parts in (2, 4):
        losses, found = gradients(model, batch, parts)
        assert losses == pytest.approx(whole, rel=1e-5)
        assert (found - expected).norm() < 1e-5 * expected.norm()


def test_losses_are_detached(model):
    losses = forward_backward(
        model, [0], [1], lambda _: {"loss": next(model.parameters()).sum()}, torch.Tensor.backward
    )
    assert not losses["loss"].requires_grad


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_shows_in_every_gradient(wrong):
    layer = nn.Linear(2, 2)

    def losses(part: int) -> dict[str, torch.Tensor]:
        # Its own gradient is 1.
        return {"loss": layer.weight.sum() + (wrong if part == 0 else 0.0) + layer.bias.sum()}

    forward_backward(layer, [0, 1], [1, 1], losses, torch.Tensor.backward)
    assert all(p.grad.isnan().all() for p in layer.parameters())
    layer.zero_grad()
    forward_backward(layer, [1], [1], losses, torch.Tensor.backward)
    assert all((p.grad == 1).all() for p in layer.parameters())


@pytest.mark.parametrize(("parts", "images", "processes"), [(3, 4, 1), (0, 4, 1), (4, 4, 2)])
def test_parts_that_do_not_fit_are_refused(parts, images, processes):
    cfg = get_cfg()
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.ACCUMULATE = images, parts
    expected = f"SOLVER.ACCUMULATE is {parts}; expected a divisor of {images // processes},"
    with pytest.raises(ConfigError, match=expected):
        check_shares(cfg, processes)


def test_torchvisions_detectors_have_no_parts():
    opts = ["MODEL.META_ARCHITECTURE", "torchvision.FCOS", "SOLVER.ACCUMULATE", "2"]
    message = refused(CONFIGS / "onenet.fcos.res50.yaml", *opts)
    assert message.startswith("SOLVER.ACCUMULATE is 2; expected 1 for the detectors of torchvision")
