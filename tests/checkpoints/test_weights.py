"""Reading and loading weights: OneNet's, torchvision's and Detectron2's, unsafe and broken ones."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from helpers.small_models import Detector, Small, refused, same, saved
from helpers.web import serve

from onenet.checkpoints import transfer
from onenet.checkpoints.files import read_checkpoint, save_checkpoint
from onenet.checkpoints.web import Interrupted
from onenet.checkpoints.weights import load_weights, locate_weights, to_detectron2_name
from onenet.errors import CheckpointError


class Attack:
    """Unpickling it creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.fixture(scope="module")
def resnet18() -> dict[str, torch.Tensor]:
    """State of torchvision's ResNet-18, with random weights and statistics."""
    torch.manual_seed(0)
    state = torchvision.models.resnet18(weights=None).state_dict()
    return {k: torch.rand_like(v) if v.is_floating_point() else v for k, v in state.items()}


def test_round_trip(tmp_path):
    model, other = Small(), Small()
    save_checkpoint(tmp_path / "new" / "m.pth", {"model": model.state_dict(), "iteration": 7})
    rest = load_weights(other, str(tmp_path / "new" / "m.pth"))
    assert same(other, model.state_dict()) and rest == {"iteration": 7}
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["m.pth"]


def test_a_bare_state_dict_and_safetensors(tmp_path):
    from safetensors.torch import save_file

    model = Small()
    save_file(model.state_dict(), tmp_path / "m.safetensors")
    for weights in (saved(tmp_path / "m.pth", model.state_dict()), tmp_path / "m.safetensors"):
        other = Small()
        assert load_weights(other, str(weights)) == {} and same(other, model.state_dict())


@pytest.mark.parametrize(
    ("key", "prefix"),
    [
        ("model", "module."),
        ("model", "_orig_mod."),
        ("model", "module._orig_mod."),
        ("model", "_orig_mod.module."),
        ("state_dict", "model."),
        ("state_dict", "model._orig_mod."),
    ],
)
def test_the_prefix_of_a_wrapper_goes(tmp_path, key, prefix):
    model, other = Small(), Small()
    state = {f"{prefix}{name}": value for name, value in model.state_dict().items()}
    load_weights(other, saved(tmp_path / "m.pth", {key: state}))
    assert same(other, model.state_dict())


def test_parts_that_were_compiled_keep_their_names(tmp_path):
    model, other = Small(), Small()
    state = model.state_dict()
    model.head = torch.compile(model.head)
    assert any("head._orig_mod." in name for name in model.state_dict())
    load_weights(other, saved(tmp_path / "m.pth", {"model": model.state_dict()}))
    assert same(other, state)


def test_one_parameter_under_two_names_is_refused(tmp_path):
    state = Small().state_dict()
    both = {**state, **{f"module.{name}": value for name, value in state.items()}}
    with pytest.raises(CheckpointError, match="m.pth holds '.*' twice, with and without a wrapper"):
        read_checkpoint(Path(saved(tmp_path / "m.pth", {"model": both})))


@pytest.mark.parametrize("fpn", [False, True])
def test_torchvisions_file_fills_the_backbone(tmp_path, resnet18, fpn):
    model = Detector(fpn)
    rest = {k: v.clone() for k, v in model.state_dict().items() if not is_resnet(k, fpn)}
    assert load_weights(model, saved(tmp_path / "resnet18-x.pth", resnet18)) == {}
    resnet = model.backbone.bottom_up if fpn else model.backbone
    expected = {to_detectron2_name(k): v for k, v in resnet18.items() if not k.startswith("fc.")}
    assert same(resnet, expected) and len(expected) == len(resnet.state_dict())
    assert rest and same(model, rest)


def is_resnet(name: str, fpn: bool) -> bool:
    return name.startswith("backbone.bottom_up." if fpn else "backbone.")


@pytest.mark.parametrize(
    ("theirs", "name"),
    [
        ("conv1.weight", "stem.conv1.weight"),
        ("bn1.running_var", "stem.conv1.norm.running_var"),
        ("layer1.0.conv2.weight", "res2.0.conv2.weight"),
        ("layer4.22.bn3.bias", "res5.22.conv3.norm.bias"),
        ("layer3.0.downsample.0.weight", "res4.0.shortcut.weight"),
        ("layer3.0.downsample.1.running_mean", "res4.0.shortcut.norm.running_mean"),
        ("fc.bias", None),
    ],
)
def test_names_of_torchvision(theirs, name):
    assert to_detectron2_name(theirs) == name


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("fpn", [False, True])
def test_detectron2s_pickle_fills_the_backbone(tmp_path, resnet18, fpn, protocol):
    """The file holds the classifier, too, as stem.fc."""
    arrays = {to_detectron2_name(k) or f"stem.{k}": v.numpy() for k, v in resnet18.items()}
    content = {"model": arrays, "__author__": "torchvision", "matching_heuristics": True}
    (tmp_path / "R-18.pkl").write_bytes(pickle.dumps(content, protocol))
    model = Detector(fpn, norm="FrozenBN")
    rest = load_weights(model, str(tmp_path / "R-18.pkl"))
    assert rest == {"__author__": "torchvision", "matching_heuristics": True}
    resnet = model.backbone.bottom_up if fpn else model.backbone
    expected = {to_detectron2_name(k): v for k, v in resnet18.items() if not k.startswith("fc.")}
    assert same(resnet, {k: v for k, v in expected.items() if "num_batches" not in k})


def test_arrays_of_every_kind_in_a_pickle(tmp_path):
    arrays = {
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big endian": np.arange(3, dtype=">f4"),
        "scalar": np.float32(2.5),
        "empty": np.zeros((0, 4)),
        "whole": np.array(7),
        "flag": np.array([True, False]),
    }
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(arrays))
    model = read_checkpoint(tmp_path / "m.pkl")["model"]
    assert {k: v.tolist() for k, v in model.items()} == {k: v.tolist() for k, v in arrays.items()}
    assert model["empty"].shape == (0, 4) and model["fortran"].dtype == torch.float64


@pytest.mark.parametrize("name", ["m.pkl", "m.pth"])
def test_a_file_that_would_run_code_is_refused_without_running_it(tmp_path, name):
    marker = tmp_path / "executed"
    content = {"model": {"backbone.a": Attack(marker)}}
    if name == "m.pkl":
        (tmp_path / name).write_bytes(pickle.dumps(content))
    else:
        torch.save(content, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"m\.p.* is refused.*posix\.system") as error:
        read_checkpoint(tmp_path / name)
    assert "save its weights alone" in str(error.value)
    assert not marker.exists()
    os.system(f"touch {marker}")
    assert marker.exists(), "the attack itself works"


def test_arrays_of_objects_are_refused(tmp_path):
    """With forged flags, NumPy would treat their bytes as addresses."""
    content = {"a": np.array([None, 1], dtype=object)}
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError, match="refused.*'O8' instead of numbers"):
        read_checkpoint(tmp_path / "m.pkl")


@pytest.mark.parametrize("name", ["m.pth", "m.pkl", "m.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_a_file_that_is_cut_short(tmp_path, name, share):
    from safetensors.torch import save_file

    path, state = tmp_path / name, {"a": torch.arange(100.0)}
    if name == "m.pth":
        torch.save(state, path)
    elif name == "m.pkl":
        path.write_bytes(pickle.dumps({"a": np.arange(100.0)}))
    else:
        save_file(state, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint") as error:
        read_checkpoint(path)
    assert name in str(error.value) and "run code" not in str(error.value)


@pytest.mark.parametrize("name", ["m.pth", "m.pkl"])
def test_a_page_saved_as_a_checkpoint_is_not_called_dangerous(tmp_path, name):
    (tmp_path / name).write_text("<html>404</html>")
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
        read_checkpoint(tmp_path / name)


@pytest.mark.parametrize("content", [[1, 2], {"a": "text"}, {"state_dict": {"a": 1}}, {1: 2}])
def test_a_file_without_a_state_dict(tmp_path, content):
    with pytest.raises(CheckpointError, match="m.pth holds no state dict"):
        read_checkpoint(Path(saved(tmp_path / "m.pth", content)))


@pytest.mark.parametrize("weights", ["nowhere/m.pth", "."])
def test_a_missing_file(weights):
    with pytest.raises(CheckpointError, match=f"MODEL.WEIGHTS {weights}: there is no such file"):
        locate_weights(weights)


@pytest.mark.parametrize(
    "weights", ["torchvision://resnet152", "detectron2://COCO/R-50.pkl", "s3://host/m.pth"]
)
def test_an_unknown_address(weights):
    with pytest.raises(
        CheckpointError, match=f"{weights}: unknown address.*torchvision://resnet18"
    ):
        locate_weights(weights)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """torchvision's cache, empty and offline."""

    def offline(url, *args, **kwargs):
        raise Interrupted("no network", connected=False)

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(transfer, "open_url", offline)
    return tmp_path / "checkpoints"


R18 = "detectron2://ImageNetPretrained/torchvision/R-18.pkl"


@pytest.mark.parametrize("weights", ["torchvision://resnet18", R18])
def test_offline_the_error_says_which_file_goes_where(hub, weights, monkeypatch):
    message = refused(Small(), weights)
    for part in ("resnet18-f37072fd.pth", "https://download.pytorch.org", str(hub), "no network"):
        assert part in message
    (hub / "resnet18-f37072fd.pth").write_bytes(b"cut")
    assert "no network" in refused(Small(), weights), "its name tells its hash"
    monkeypatch.setattr(transfer, "hash_of", lambda path: "f37072fd")
    assert locate_weights(weights) == hub / "resnet18-f37072fd.pth"


def test_an_address_on_the_net(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    model, other = Small(), Small()
    with serve() as site:
        path = Path(saved(tmp_path / "m.pth", {"model": model.state_dict(), "iteration": 7}))
        site.files["/m.pth"] = path.read_bytes()
        assert load_weights(other, f"{site.url}/m.pth") == {"iteration": 7}
        assert same(other, model.state_dict())
        torch.save({"model": {"backbone.a": Attack(tmp_path / "executed")}}, path)
        site.files["/bad.pth"] = path.read_bytes()
        assert "loading it could run code" in refused(Small(), f"{site.url}/bad.pth")
        message = refused(Small(), f"{site.url}/gone.pth")
        assert f"MODEL.WEIGHTS {site.url}/gone.pth could not be downloaded" in message
    assert not (tmp_path / "executed").exists()
