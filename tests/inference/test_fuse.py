"""Batch norms folded into convolutions: which are, and that nothing changes but rounding."""

from __future__ import annotations

import pytest
import torch
from helpers.configs import CONFIGS
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torchvision.ops import FrozenBatchNorm2d

from onenet.heads.deconv import DCNDeconvLayer, DeconvLayer
from onenet.inference.fuse import fold_batch_norms
from onenet.inference.optimize import prepare
from onenet.lightning.build import build_detector
from onenet.lightning.config import load_cfg

close = torch.testing.assert_close

_R18 = ["MODEL.OneNet.NUM_CLASSES", "3", "MODEL.OneNet.DECONV_CHANNEL", "[512, 16, 16, 16]"]
_R50 = ["MODEL.OneNet.NUM_CLASSES", "3", "MODEL.OneNet.DECONV_CHANNEL", "[2048, 16, 16, 16]"]
_FPN = ["MODEL.FPN.OUT_CHANNELS", "32", "MODEL.OneNet.CONV_CHANNELS", "64"]
MODELS = {
    "onenet.res18.dcn": _R18,
    "onenet.res18.nodcn": _R18,
    "onenet.res50.dcn": _R50,
    "onenet.res50.nodcn": _R50,
    "onenet.nano": ["MODEL.OneNet.NUM_CLASSES", "3"],
    "onenet.fcos.res50": [*_FPN, "MODEL.OneNet.CONV_NORM", "BN"],
    "onenet.fcos.res50.crowdhuman": _FPN,
    "onenet.retinanet.res50": [*_FPN, "MODEL.RESNETS.NORM", "SyncBN"],
    "onenet.retinanet.res50.crowdhuman": _FPN,
}


class Hanging(nn.Conv2d):
    """As Detectron2's: the norm is the convolution's own, an activation comes after it."""

    def __init__(self, norm: nn.Module, bias: bool = False) -> None:
        super().__init__(4, 6, 3, bias=bias)
        self.norm = norm

    def forward(self, x):
        return self.norm(super().forward(x)).relu()


def own_frozen() -> nn.Module:
    """A FrozenBatchNorm2d that is not torchvision's; Detectron2 has one."""

    class FrozenBatchNorm2d(nn.Module):
        def __init__(self):
            super().__init__()
            for name in ("weight", "bias", "running_mean", "running_var"):
                self.register_buffer(name, torch.zeros(6))
            self.eps = 1e-3

        def forward(self, x):
            statistics = self.running_mean, self.running_var
            return nn.functional.batch_norm(x, *statistics, self.weight, self.bias, eps=self.eps)

    return FrozenBatchNorm2d()


@torch.no_grad()
def settle(module: nn.Module) -> nn.Module:
    """Statistics and factors as after training, in evaluation mode."""
    torch.manual_seed(0)
    for m in module.modules():
        if hasattr(m, "running_var") and m.running_var is not None:
            m.running_mean.normal_()
            m.running_var.uniform_(0.3, 3)
            if m.weight is not None:
                m.weight.uniform_(-2, 2)
                m.bias.normal_()
    return module.eval()


def norms(module: nn.Module) -> int:
    return sum(hasattr(m, "running_var") for m in module.modules())


KINDS = {
    "convolution": (lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)), 1),
    "no bias": (lambda: nn.Sequential(nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6)), 1),
    "no factors": (
        lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, eps=0.1, affine=False)),
        1,
    ),
    "groups": (lambda: nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)), 1),
    "transposed": (lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 4, 2), nn.BatchNorm2d(6)), 1),
    "hanging": (lambda: Hanging(nn.BatchNorm2d(6)), 1),
    "hanging, bias": (lambda: Hanging(nn.BatchNorm2d(6), bias=True), 1),
    "frozen": (lambda: Hanging(FrozenBatchNorm2d(6)), 1),
    "frozen, another's": (lambda: Hanging(own_frozen()), 1),
    "synchronised": (lambda: Hanging(nn.SyncBatchNorm(6)), 1),
    "named, plain": (lambda: DeconvLayer(4, 6, 4), 2),
    "named, deformable": (lambda: DCNDeconvLayer(4, 6, 4, True), 2),
    "named, deformable v1": (lambda: DCNDeconvLayer(4, 6, 3, False), 2),
}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_convolution_keeps_its_values(kind, dtype, channels_last):
    make, count = KINDS[kind]
    module = settle(make()).to(dtype)
    x = torch.randn(2, 4, 8, 10, dtype=dtype)
    if channels_last:
        module, x = (v.to(memory_format=torch.channels_last) for v in (module, x))
    with torch.no_grad():
        expected = module(x)
        assert fold_batch_norms(module) == count and norms(module) == 0
        found = module(x)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    close(found, expected, rtol=tolerance, atol=tolerance * expected.abs().max().item())


class Shared(nn.Module):
    """One convolution with two batch norms."""

    def __init__(self):
        super().__init__()
        conv = nn.Conv2d(4, 4, 3)
        self.first = nn.Sequential(conv, nn.BatchNorm2d(4))
        self.second = nn.Sequential(conv, nn.BatchNorm2d(4))

    def forward(self, x):
        return self.second(self.first(x))


class Activated(nn.BatchNorm2d):
    """Does more than its base."""

    def forward(self, x):
        return super().forward(x).relu()


class Backwards(nn.Sequential):
    """Not in the order of its layers."""

    def forward(self, x):
        for layer in reversed(self):
            x = layer(x)
        return x


def twice_the_same_relu() -> nn.Module:
    relu = nn.ReLU()
    return nn.Sequential(nn.Conv2d(4, 4, 3), relu, nn.Conv2d(4, 4, 3), relu, nn.BatchNorm2d(4))


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(Shared, id="shared"),
        pytest.param(twice_the_same_relu, id="not next to it"),
        pytest.param(lambda: nn.Sequential(nn.Conv2d(4, 4, 3), Activated(4)), id="another norm"),
        pytest.param(lambda: Backwards(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)), id="other order"),
        pytest.param(
            lambda: nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
            id="no statistics",
        ),
        pytest.param(
            lambda: nn.Sequential(
                nn.ConvTranspose2d(4, 4, 2, groups=2, bias=False), nn.BatchNorm2d(4)
            ),
            id="transposed groups",
        ),
        pytest.param(
            lambda: nn.Sequential(weight_norm(nn.Conv2d(4, 4, 3)), nn.BatchNorm2d(4)),
            id="computed weight",
        ),
    ],
)
def test_what_cannot_be_folded_stays_and_works(make):
    module = settle(make())
    x = torch.randn(1, 4, 9, 9)
    with torch.no_grad():
        expected = module(x)
        before = norms(module)
        assert fold_batch_norms(module) == 0 and norms(module) == before
        close(module(x), expected, rtol=0, atol=0)


def test_training_mode_is_refused():
    with pytest.raises(ValueError, match=r"call eval\(\) first"):
        fold_batch_norms(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)))


@pytest.mark.parametrize("name", MODELS)
def test_whole_models_keep_their_predictions(name):
    """In float64, where rounding does not hide a mistake."""
    torch.manual_seed(0)
    cfg = load_cfg(CONFIGS / f"{name}.yaml", ["MODEL.DEVICE", "cpu", *MODELS[name]])
    model = settle(build_detector(cfg)).double()
    for m in model.modules():
        if hasattr(m, "running_var"):
            # Or else activations of a random network grow out of all proportion.
            m.weight.data.mul_(0.3)
    batch = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        assert norms(model) > 10
        expected, found = model.network(batch), prepare(model).network(batch)
        assert norms(model) == 0
    close(found.logits, expected.logits, rtol=1e-9, atol=1e-9)
    close(found.boxes, expected.boxes, rtol=1e-6, atol=1e-4)  # float32
    assert torch.equal(found.samples, expected.samples)
