"""Weights of another model: what loads, what keeps its initialisation, what is refused."""

from __future__ import annotations

import pytest
import torch
from helpers.small_models import Detector, Small, refused, same, saved
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from onenet.checkpoints.weights import load_weights


@pytest.mark.parametrize("make", [Small, lambda classes: Detector(classes=classes)])
def test_another_number_of_classes(tmp_path, caplog, make):
    """Fine-tuning keeps the new class layer and loads everything else."""
    source, model = make(classes=5), make(classes=3)
    weights = saved(tmp_path / "m.pth", {"model": source.state_dict()})
    message = refused(model, weights)
    assert "NUM_CLASSES" in message and "head.cls_score.weight" in message
    fresh = {k: v.clone() for k, v in model.state_dict().items() if "cls_score" in k}
    with caplog.at_level("INFO"):
        load_weights(model, weights, new_classes=True)
    assert len(fresh) == 2 and same(model, fresh)
    assert same(model, {k: v for k, v in source.state_dict().items() if "cls_score" not in k})
    assert "class layer keeps its initialisation" in caplog.text


def test_new_classes_load_a_class_layer_that_fits(tmp_path):
    source, model = Small(), Small()
    load_weights(model, saved(tmp_path / "m.pth", source.state_dict()), new_classes=True)
    assert same(model, source.state_dict())


def test_another_architecture_is_listed_by_names_and_shapes(tmp_path):
    state = Small(width=4).state_dict()
    state["head.extra.weight"] = torch.zeros(1)
    del state["backbone.1.bias"]
    message = refused(Small(), saved(tmp_path / "m.pth", {"model": state}), new_classes=True)
    assert "1 missing: backbone.1.bias" in message
    assert "1 not in the model: head.extra.weight" in message
    assert "backbone.0.weight (4, 1, 1, 1), the model has (2, 1, 1, 1)" in message
    assert "NUM_CLASSES" not in message and "m.pth" in message


def test_imagenet_weights_of_another_depth_are_refused(tmp_path):
    state = {"conv1.weight": torch.zeros(1), "layer1.0.conv3.weight": torch.zeros(1)}
    message = refused(Detector(), saved(tmp_path / "m.pth", state))
    assert "not in the model: backbone.res2.0.conv3.weight" in message


def test_a_backbone_alone_is_no_detector(tmp_path):
    weights = saved(tmp_path / "m.pth", {"conv1.weight": torch.zeros(1)})
    assert "holds a backbone only" in refused(Small(), weights, detector=True)


@pytest.mark.parametrize(("source", "goal"), [("BN", "FrozenBN"), ("FrozenBN", "BN")])
def test_batch_norms_load_into_frozen_ones_and_back(tmp_path, source, goal):
    kinds = {"BN": nn.BatchNorm2d, "FrozenBN": FrozenBatchNorm2d}
    models = [Small(), Small()]
    for model, kind in zip(models, (source, goal), strict=True):
        model.backbone[1] = kinds[kind](2)
    models[0].backbone[1].running_mean.fill_(3.0)
    load_weights(models[1], saved(tmp_path / "m.pth", {"model": models[0].state_dict()}))
    assert models[1].backbone[1].running_mean.tolist() == [3.0, 3.0]
