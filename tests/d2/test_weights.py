"""MODEL.WEIGHTS from wherever Detectron2's users keep them, and their own training loops."""

from __future__ import annotations

import pytest

pytest.importorskip("detectron2")

import pickle
from pathlib import Path

import torch
import torchvision
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.solver import build_optimizer
from detectron2.utils.events import EventStorage
from detectron2.utils.file_io import PathHandler, PathManager
from helpers.detectron2_runs import as_input, pictures, small_cfg, truth
from helpers.project import load_script
from helpers.web import serve

from onenet.checkpoints import weights as checkpoint
from onenet.checkpoints.files import save_checkpoint
from onenet.d2 import add_onenet_config
from onenet.d2.weights import fetch_weights, load_weights
from onenet.errors import CheckpointError

converter = load_script("tools/convert_torchvision_to_d2.py")


def test_an_address_on_the_net(tmp_path, monkeypatch):
    """Downloaded by our own code, as with the embedded engine."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    model, other = (build_model(small_cfg("plain")) for _ in range(2))
    save_checkpoint(tmp_path / "model.pth", {"model": model.state_dict()})
    with serve() as site:
        site.files["/zoo/model.pth"] = (tmp_path / "model.pth").read_bytes()
        load_weights(other, f"{site.url}/zoo/model.pth", detector=True)
        torch.testing.assert_close(other.state_dict(), model.state_dict())
        assert Path(fetch_weights(f"{site.url}/zoo/model.pth")).is_relative_to(tmp_path / "hub")
        with pytest.raises(CheckpointError, match="gone.pth could not be .*404.*its path"):
            fetch_weights(f"{site.url}/gone.pth")


def test_detectron2s_addresses_go_to_its_own_handler(tmp_path, monkeypatch):
    """All of them but torchvision's ImageNet weights, which both engines find by themselves."""
    asked = []

    class Handler(PathHandler):
        def _get_supported_prefixes(self):
            return ["detectron2://", "zoo://"]

        def _get_local_path(self, path, force=False, **_):
            asked.append(path)
            return str(tmp_path / "model.pkl")

    (tmp_path / "model.pkl").write_bytes(pickle.dumps({}))
    monkeypatch.setattr(PathManager, "_path_handlers", PathManager._path_handlers.copy())
    PathManager.register_handler(Handler(), allow_override=True)
    for address in ("detectron2://COCO/model.pkl", "zoo://model.pkl"):
        assert fetch_weights(address) == str(tmp_path / "model.pkl")
    monkeypatch.setattr(checkpoint, "fetch", lambda url: tmp_path / url.rpartition("/")[2])
    assert fetch_weights("torchvision://resnet18") == str(tmp_path / "resnet18-f37072fd.pth")
    known = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
    assert Path(fetch_weights(known)).name.startswith("resnet50-")
    assert asked == ["detectron2://COCO/model.pkl", "zoo://model.pkl"]


@pytest.mark.parametrize(
    ("weights", "told"), [("no.pth", "no such file"), ("nobody://no.pth", "unknown address")]
)
def test_what_is_not_there(weights, told):
    with pytest.raises(CheckpointError, match=told):
        fetch_weights(weights)


@pytest.mark.parametrize("name", ["plain", "fcos"])
def test_imagenet_weights_fill_the_backbone(tmp_path, name):
    source = torchvision.models.resnet18(weights=None)
    torch.save(source.state_dict(), tmp_path / "resnet18.pth")
    content = converter.convert(source.state_dict())
    (tmp_path / "R-18.pkl").write_bytes(pickle.dumps(content))
    for file in ("resnet18.pth", "R-18.pkl"):
        model = build_model(small_cfg(name))
        load_weights(model, str(tmp_path / file), new_classes=True)
        resnet = getattr(model.backbone, "bottom_up", model.backbone)
        assert torch.equal(resnet.res5[1].conv2.weight, source.layer4[1].conv2.weight)
        assert torch.equal(resnet.stem.conv1.norm.weight, source.bn1.weight)


def test_a_training_loop_of_the_users_own(shapes):
    """As in Detectron2's plain_train_net.py: its config, model builder and optimiser."""
    cfg = get_cfg()
    add_onenet_config(cfg)
    cfg.merge_from_other_cfg(small_cfg("plain"))
    model = build_model(cfg).train()
    optimizer = build_optimizer(cfg, model)
    image = pictures(shapes, 1)[0]
    with EventStorage(0):
        losses = model([as_input(image, truth(image, 3))])
        sum(losses.values()).backward()
        optimizer.step()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
