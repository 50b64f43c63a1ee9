"""torchvision's ResNets as Detectron2's pickles, loaded by both engines."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
import torchvision
from helpers.configs import CONFIGS
from helpers.project import load_script

from onenet.checkpoints.files import read_checkpoint
from onenet.checkpoints.weights import load_weights
from onenet.lightning.build import build_detector
from onenet.lightning.config import load_cfg

tool = load_script("tools/convert_torchvision_to_d2.py")
SMALL = ["MODEL.OneNet.DECONV_CHANNEL", "[512, 16, 16, 16]", "MODEL.DEVICE", "cpu"]


def randomised(depth: int) -> torch.nn.Module:
    torch.manual_seed(depth)
    model = getattr(torchvision.models, f"resnet{depth}")(weights=None)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    model = randomised(18)
    torch.save(model.state_dict(), folder / "resnet18.pth")
    tool.main(["--input", str(folder / "resnet18.pth"), "--output", str(folder / "d2/R-18.pkl")])
    return model, folder / "d2" / "R-18.pkl"


def test_it_is_what_detectron2_expects(converted):
    model, path = converted
    content = pickle.loads(path.read_bytes())
    assert content.keys() == {"model", "__author__", "matching_heuristics"}
    assert content["matching_heuristics"] is True
    arrays = content["model"]
    assert all(type(value) is np.ndarray for value in arrays.values())
    assert not any("fc" in name or "num_batches" in name for name in arrays)
    assert len(arrays) == 100  # 20 convolutions with 4 arrays of their norms each
    expected = model.layer2[0].downsample[1].running_var.numpy()
    assert (arrays["res3.0.shortcut.norm.running_var"] == expected).all()
    assert (arrays["stem.conv1.weight"] == model.conv1.weight.detach().numpy()).all()
    assert [p.name for p in path.parent.iterdir()] == ["R-18.pkl"]


def test_the_embedded_engine_loads_the_same_as_from_torchvisions_file(converted):
    model, path = converted
    cfg = load_cfg(CONFIGS / "onenet.res18.nodcn.yaml", SMALL)
    first, second = build_detector(cfg), build_detector(cfg)
    load_weights(first, str(path))
    load_weights(second, str(path.parents[1] / "resnet18.pth"))
    torch.testing.assert_close(first.backbone.state_dict(), second.backbone.state_dict())
    assert torch.equal(first.backbone.res5[1].conv2.weight, model.layer4[1].conv2.weight)


def test_detectron2_loads_it(converted):
    pytest.importorskip("detectron2")
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.modeling import build_model

    from onenet.d2.config import load_cfg as load_d2

    model, path = converted
    detector = build_model(load_d2(CONFIGS / "onenet.res18.nodcn.yaml", SMALL))
    DetectionCheckpointer(detector).load(str(path))
    ours = build_detector(load_cfg(CONFIGS / "onenet.res18.nodcn.yaml", SMALL))
    load_weights(ours, str(path))
    theirs = detector.backbone.state_dict()
    for name, value in ours.backbone.state_dict().items():
        assert name.endswith("num_batches_tracked") or torch.equal(value, theirs[name]), name


@pytest.mark.parametrize("depth", [34, 50, 101])
def test_every_array_of_the_deeper_ones_has_a_place(depth):
    with torch.device("meta"):
        state = getattr(torchvision.models, f"resnet{depth}")(weights=None).state_dict()
        opts = ["MODEL.RESNETS.DEPTH", str(depth), "MODEL.RESNETS.RES2_OUT_CHANNELS"]
        opts += ["64"] if depth == 34 else ["256", "MODEL.OneNet.DECONV_CHANNEL", "[2048,8,8,8]"]
        names = build_detector(load_cfg(CONFIGS / "onenet.res18.nodcn.yaml", opts)).backbone
    expected = {k for k in names.state_dict() if not k.endswith("num_batches_tracked")}
    zeros = {name: torch.zeros(1) for name in state}
    assert set(tool.convert(zeros)["model"]) == expected


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--input", "none.pth", "--output", "a.pkl"], "there is no such file"),
        (["--input", "none.pth", "--output", "a.pth"], "ends with .pkl"),
        (["--input", "{folder}/other.pth", "--output", "a.pkl"], "names such as head.weight"),
        (["--input", "{folder}/empty.pth", "--output", "a.pkl"], "names such as nothing"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, capsys, words, told):
    torch.save({"head.weight": torch.zeros(1)}, tmp_path / "other.pth")
    torch.save({}, tmp_path / "empty.pth")
    with pytest.raises(SystemExit) as stop:
        tool.main([word.format(folder=tmp_path) for word in words])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and told in error


def test_the_pickle_reads_back_safely(converted):
    assert len(read_checkpoint(converted[1])["model"]) == 100
