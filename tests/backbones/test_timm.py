"""Backbones of timm: their maps, norms, frozen layers, folded batch norms, weights and refusals."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from helpers.configs import CONFIGS, refused
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from onenet.backbones.timm import FrozenNormAct, TimmBackbone, _Reads
from onenet.backbones.timm_names import published
from onenet.checkpoints import transfer
from onenet.checkpoints.web import Interrupted
from onenet.checkpoints.weights import load_weights, locate_weights
from onenet.errors import CheckpointError, ConfigError
from onenet.inference.fuse import fold_batch_norms, spell_out_batch_norms
from onenet.lightning.build import build_detector
from onenet.lightning.config import load_cfg

timm = pytest.importorskip("timm")

R18 = CONFIGS / "onenet.res18.nodcn.yaml"
OPTS = [
    *("MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.WEIGHTS", ""),
    *("MODEL.TIMM.NAME", "resnet10t", "MODEL.OneNet.DECONV_CHANNEL", "[512, 8, 8, 8]"),
]
# Plain batch norms; with their activation in one; before convolutions; none.
FAMILIES = ("resnet10t", "mobilenetv3_small_050", "resnetv2_18", "convnext_atto")


def settled(name: str, **options) -> TimmBackbone:
    """A backbone whose batch norms are not the identity, in evaluation mode."""
    torch.manual_seed(0)
    backbone = TimmBackbone(name, **options)
    for norm in backbone.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.uniform_(-0.2, 0.2)
            norm.running_var.uniform_(0.5, 1.5)
    return backbone.eval()


@pytest.mark.parametrize("name", FAMILIES)
def test_maps_and_folded_batch_norms(name):
    backbone, x = settled(name), torch.randn(1, 3, 64, 96)
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in backbone.modules())
    with torch.no_grad():
        expected = backbone(x)
        folded = fold_batch_norms(backbone)
        found = backbone(x)
        spell_out_batch_norms(backbone)
        spelled = backbone(x)
    for stride, (key, value) in zip((4, 8, 16, 32), expected.items(), strict=True):
        assert value.shape[1:] == (backbone.shapes[key].channels, 64 // stride, 96 // stride)
        largest = value.abs().max().item()
        for other in (found, spelled):
            torch.testing.assert_close(other[key], value, rtol=1e-4, atol=1e-5 * largest)
    # Those before a convolution, of a ResNet of version 2, cannot be folded into one.
    assert folded == norms or (name == "resnetv2_18" and 0 < folded < norms)
    assert not [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]


def test_a_tensor_that_is_gone_pairs_no_convolution_with_a_batch_norm():
    reads, conv, norm = _Reads(), nn.Conv2d(3, 8, 1), nn.BatchNorm2d(4)
    tensor = torch.zeros(1, 4, 2, 2)
    reads.before_norm(norm, (tensor,))  # a sum, say
    reads.after_conv(conv, None, tensor)  # as if a later output had got its id
    with reads:
        tensor + 1
    assert reads.pairs() == []


def test_frozen_layers_are_those_that_a_map_comes_from():
    backbone = TimmBackbone("mobilenetv3_small_050", freeze_at=2)
    with torch.no_grad():
        before = backbone.eval()(torch.ones(1, 3, 64, 64))
    for parameter in backbone.parameters():
        if parameter.requires_grad:
            parameter.data.add_(1.0)
    with torch.no_grad():
        after = backbone(torch.ones(1, 3, 64, 64))
    assert torch.equal(before["res2"], after["res2"])
    assert not torch.allclose(before["res3"], after["res3"])
    assert [m for m in backbone.modules() if isinstance(m, FrozenNormAct)]


def test_norms():
    plain, frozen = (
        settled("mobilenetv3_small_050"),
        TimmBackbone("mobilenetv3_small_050", norm="FrozenBN"),
    )
    counts = "num_batches_tracked"
    state = {n: v for n, v in plain.state_dict().items() if not n.endswith(counts)}
    frozen.load_state_dict(state)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(frozen(x), plain(x), rtol=1e-4, atol=1e-5)
    assert any(isinstance(m, FrozenBatchNorm2d) for m in frozen.modules())
    synced = TimmBackbone("resnet10t", norm="SyncBN")
    assert any(isinstance(m, nn.SyncBatchNorm) for m in synced.modules())
    with pytest.raises(ValueError, match="convnext_atto has no batch norms; expected 'BN'"):
        TimmBackbone("convnext_atto", norm="SyncBN")


def test_a_pyramid_of_chosen_maps():
    opts = [*OPTS, "MODEL.BACKBONE.NAME", "build_retinanet_timm_fpn_backbone"]
    opts += ["MODEL.TIMM.OUT_INDICES", "[2, 3, 4]", "MODEL.FPN.OUT_CHANNELS", "64"]
    opts += ["MODEL.FPN.IN_FEATURES", "['res3', 'res4', 'res5']", "MODEL.OneNet.HEAD", "FCOS"]
    opts += ["MODEL.OneNet.IN_FEATURES", "['p3', 'p4', 'p5', 'p6', 'p7']"]
    model = build_detector(load_cfg(R18, opts)).eval()
    assert list(model.backbone.bottom_up.shapes) == ["res3", "res4", "res5"]
    with torch.no_grad():
        assert len(model([torch.zeros(3, 64, 96, dtype=torch.uint8)])[0]) == 100


@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto"])
def test_a_file_of_timms_classifier_fills_the_backbone(name, tmp_path):
    classifier = timm.create_model(name)
    torch.save(classifier.state_dict(), tmp_path / "classifier.pth")
    width = classifier.num_features
    opts = [*OPTS, "MODEL.TIMM.NAME", name]
    opts += ["MODEL.OneNet.DECONV_CHANNEL", f"[{width}, 8, 8, 8]"]
    model = build_detector(load_cfg(R18, opts))
    load_weights(model, str(tmp_path / "classifier.pth"))
    expected = timm.create_model(name, features_only=True).eval()
    state = model.backbone.from_classifier(classifier.state_dict())
    expected.load_state_dict({k.removeprefix("net."): v for k, v in state.items()})
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model.backbone.eval()(x)["res5"], expected(x)[-1])


def test_pretrained_weights_have_an_address():
    opts = [*OPTS, "MODEL.TIMM.PRETRAINED", "True"]
    assert load_cfg(R18, opts).MODEL.WEIGHTS == "timm://resnet10t"
    # A checkpoint stays: the config of a training evaluates.
    assert load_cfg(R18, [*opts, "MODEL.WEIGHTS", "m.pth"]).MODEL.WEIGHTS == "m.pth"
    assert published("resnet18").startswith("https://huggingface.co/timm/resnet18.")


def test_offline_the_error_says_which_file_goes_where(tmp_path, monkeypatch):
    def offline(url, *args, **kwargs):
        raise Interrupted("no network", connected=False)

    monkeypatch.setattr(transfer, "open_url", offline)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(CheckpointError) as error:
        locate_weights("timm://resnet18.a1_in1k")
    for part in (
        "timm's weights of resnet18.a1_in1k: ",
        "no network",
        "https://huggingface.co/timm/resnet18.a1_in1k/resolve/main/model.safetensors",
        "MODEL.WEIGHTS ''",
    ):
        assert part in str(error.value)


def test_pixels_unlike_those_of_the_weights():
    opts = [*OPTS, "MODEL.TIMM.PRETRAINED", "True", "MODEL.PIXEL_STD", "[1.0, 1.0, 1.0]"]
    message = refused(R18, *opts)
    assert "MODEL.PIXEL_STD '[58.395, 57.120, 57.375]': set that" in message
    bgr = refused(R18, *opts[:-2], "INPUT.FORMAT", "BGR")
    assert "MODEL.PIXEL_MEAN '[103.530, 116.280, 123.675]'" in bgr


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet19", "which timm {version} does not have; did you mean 'resnet1"),
        ("resnet18.none", "its weights are resnet18."),
        ("hf-hub:timm/resnet18", "does not have"),
        ("vit_tiny_patch16_224", "gives maps of strides 16, 16, 16; expected 4, 8, 16 and 32"),
    ],
)
def test_models_that_are_refused(name, words):
    with pytest.raises((ConfigError, ValueError)) as error:
        TimmBackbone(name)
    assert words.format(version=timm.__version__) in str(error.value)


def test_a_model_for_images_of_one_size_is_refused(monkeypatch):
    def only_square(_, inputs):
        assert inputs[0].shape[2] == inputs[0].shape[3], "the image must be square"

    def create(name, **options):
        net = timm.create_model(name, **options)
        net.register_forward_pre_hook(only_square)
        return net

    monkeypatch.setattr(
        "onenet.backbones.timm.load_timm", lambda: SimpleNamespace(create_model=create)
    )
    with pytest.raises(ValueError, match=r"resnet10t does not take images of every size \(the"):
        TimmBackbone("resnet10t")


def test_values_that_do_not_fit():
    for options, words in (
        ({"out_indices": (0, 4)}, "maps of strides 2, 32; expected 4, 8, 16 and 32, or with"),
        ({"out_indices": (9,)}, "gives no feature maps with MODEL.TIMM.OUT_INDICES [9]"),
        ({"norm": "GN"}, "MODEL.TIMM.NORM must be one of BN, FrozenBN, SyncBN, got 'GN'"),
        ({"freeze_at": 6}, "FREEZE_AT must be from 0 to 5, got 6"),
    ):
        with pytest.raises(ValueError) as error:
            TimmBackbone("resnet10t", **options)
        assert words in str(error.value)
    with pytest.raises(ValueError, match="has no map of stride 2 to freeze up to; expected 0 or"):
        TimmBackbone("convnext_atto", freeze_at=1)
    assert "the name of a model of timm" in refused(R18, *OPTS, "MODEL.TIMM.NAME", "")


def test_without_timm_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"pip install 'onenet\[timm\]'"):
        build_detector(load_cfg(R18, OPTS))
