"""OneNet as a meta-architecture of Detectron2 is the embedded engine's model."""

from __future__ import annotations

import pytest

pytest.importorskip("detectron2")

import json

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import DefaultPredictor
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.utils.events import EventStorage
from helpers.configs import CONFIGS
from helpers.detectron2_runs import (
    SMALL,
    as_detections,
    as_input,
    assert_same_detections,
    embedded,
    pictures,
    small_cfg,
    spread,
    truth,
)
from helpers.golden import FOLDER

from onenet.assignment.matchers import MinCostMatcher
from onenet.assignment.registry import build_criterion, matcher_options
from onenet.checkpoints.files import save_checkpoint
from onenet.checkpoints.weights import load_weights
from onenet.d2 import HEAD_REGISTRY, MATCHER_REGISTRY, OneNet, OneNetDatasetMapper
from onenet.d2.config import get_cfg, load_cfg
from onenet.errors import NonFiniteError
from onenet.inference.optimize import prepare
from onenet.inference.postprocess import to_image

KEYS = json.loads((FOLDER / "checkpoint_keys.json").read_text())


@pytest.fixture(scope="module")
def models():
    """Both engines' models with the same weights, by name of ``SMALL``."""
    made = {}

    def pair(name):
        if name not in made:
            ours, theirs = embedded(name), build_model(small_cfg(name))
            theirs.load_state_dict(ours.state_dict())
            made[name] = ours, theirs
        ours, theirs = made[name]
        theirs.vis_period = 0
        return ours.eval(), theirs.eval()

    return pair


@pytest.mark.parametrize("name", KEYS)
def test_names_and_shapes_are_the_originals(name):
    cfg = load_cfg(CONFIGS / name, ["MODEL.DEVICE", "meta"])
    with torch.device("meta"):
        state = build_model(cfg).state_dict()
    assert {key: list(value.shape) for key, value in state.items()} == KEYS[name]


@pytest.mark.parametrize("name", SMALL)
def test_predictions_equal_the_embedded_engines(models, shapes, name):
    ours, theirs = models(name)
    images = pictures(shapes)
    with torch.no_grad():
        a, b = ours.predict(images), theirs.predict(images)
    assert (a.samples == b.samples).all() and (a.levels == b.levels).all()
    torch.testing.assert_close(a.logits, b.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(a.boxes, b.boxes, rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("name", SMALL)
def test_losses_equal_the_embedded_engines(models, shapes, name):
    ours, theirs = models(name)
    images = pictures(shapes)
    targets = [truth(image, 4 * i, seed=i) for i, image in enumerate(images)]  # the first is empty
    statistics = ours.state_dict()
    ours.train(), theirs.train()
    a = ours(images, targets)
    b = theirs([as_input(*both) for both in zip(images, targets, strict=True)])
    assert a.keys() == b.keys() == {"loss_ce", "loss_giou", "loss_bbox"}
    for key in a:
        assert b[key].item() == pytest.approx(a[key].item(), rel=1e-5), key
    ours.load_state_dict(statistics), theirs.load_state_dict(statistics)


@pytest.mark.parametrize("name", SMALL)
def test_detections_equal_the_embedded_engines(models, shapes, name):
    ours, theirs = models(name)
    images = pictures(shapes)
    inputs = [as_input(image, height=77, width=301) for image in images]
    with torch.no_grad():
        a, b = ours(images), theirs(inputs)
    for image, detections, output in zip(images, a, b, strict=True):
        size = tuple(image.shape[-2:])
        assert_same_detections(to_image(detections, size, (77, 301)), as_detections(output))


def test_instances_are_scaled_to_the_asked_size_and_clipped(models, shapes):
    _, model = models("fcos")
    image = pictures(shapes, 1)[0]
    height, width = image.shape[-2:]
    with torch.no_grad():
        (own,) = model([as_input(image)])
        (asked,) = model([as_input(image, height=3 * height, width=2 * width)])
    assert own["instances"].image_size == (height, width)
    assert asked["instances"].image_size == (3 * height, 2 * width)
    for output in (own["instances"], asked["instances"]):
        assert set(output.get_fields()) == {"pred_boxes", "scores", "pred_classes"}
        boxes, (h, w) = output.pred_boxes, output.image_size
        assert boxes.nonempty().all() and boxes.inside_box((h, w), boundary_threshold=1).all()
        assert (output.scores.diff() <= 0).all() and output.pred_classes.dtype == torch.int64
    stretched = own["instances"].pred_boxes.tensor * torch.tensor([2.0, 3, 2, 3])
    torch.testing.assert_close(stretched, asked["instances"].pred_boxes.tensor)


@pytest.mark.parametrize(
    ("name", "norm"),
    [
        ("plain", "BN"),
        ("plain", "SyncBN"),
        ("plain", "FrozenBN"),
        ("dcn", "BN"),
        ("fcos", "FrozenBN"),
        ("retinanet", "FrozenBN"),
    ],
)
def test_a_fused_model_predicts_the_same(shapes, name, norm):
    """Detectron2's convolutions hold their norms, of classes of its own."""
    torch.manual_seed(0)
    model = spread(build_model(small_cfg(name, "MODEL.RESNETS.NORM", norm)).eval())
    for module in model.modules():
        if type(module).__name__ == "FrozenBatchNorm2d":
            module.running_var.uniform_(0.5, 1.5)
    images = pictures(shapes)
    with torch.no_grad():
        expected = model.predict(images)
        assert not [m for m in prepare(model).modules() if hasattr(m, "running_var")]
        found = model.predict(images)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.boxes, expected.boxes, rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("counts", [(0, 0), (0, 3)])
def test_images_without_objects_train(models, shapes, counts):
    _, model = models("plain")
    images = pictures(shapes, 2)
    inputs = [as_input(i, truth(i, n)) for i, n in zip(images, counts, strict=True)]
    losses = model.train()(inputs)
    assert all(loss.isfinite() for loss in losses.values())
    assert (losses["loss_giou"] > 0) == any(counts) and losses["loss_ce"] > 0


def test_training_without_instances_says_so(models, shapes):
    _, model = models("plain")
    image = pictures(shapes, 1)[0]
    with pytest.raises(ValueError, match="needs 'instances' in every input.*a.jpg"):
        model.train()([as_input(image, file_name="a.jpg")])


def test_what_is_not_finite_names_iteration_and_files(shapes):
    model = build_model(small_cfg("plain")).train()
    image = pictures(shapes, 1)[0]
    inputs = [as_input(image, truth(image, 2), file_name="some/a.jpg")]
    with torch.no_grad():
        model.head.cls_score.bias.fill_(float("nan"))
    with EventStorage(41), pytest.raises(NonFiniteError, match="iteration 42: .*some/a.jpg"):
        model(inputs)
    inputs[0]["instances"] = inputs[0]["instances"][:0]  # no cost to be NaN, but a loss
    with EventStorage(6), pytest.raises(NonFiniteError, match="iteration 7: loss_ce = nan"):
        model(inputs)
    with pytest.raises(NonFiniteError, match="some/a.jpg"):
        model(inputs)  # outside of a trainer


@pytest.mark.parametrize("count", [0, 3])
def test_pictures_of_training(models, shapes, count):
    _, model = models("plain")
    image = pictures(shapes, 1)[0]
    inputs = [as_input(image, truth(image, count))] * 2
    model.train()
    model.backbone.stem.eval()  # as a user might who keeps its statistics
    expected = model(inputs)
    modes = [module.training for module in model.modules()]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.vis_period = 2
    with EventStorage(2) as storage:
        losses = model(inputs)
        ((name, picture, iteration),) = storage._vis_data
    assert iteration == 2 and "GT" in name
    assert picture.shape == (3, image.shape[1], 2 * image.shape[2])
    left, right = picture[..., : image.shape[2]], picture[..., image.shape[2] :]
    assert (left != right).any()
    assert [module.training for module in model.modules()] == modes
    assert all(losses[key].item() == pytest.approx(expected[key].item()) for key in losses)
    with EventStorage(3) as storage:
        model.load_state_dict(before)
        model(inputs)
        assert not storage._vis_data
    after = model.state_dict()
    model.load_state_dict(before)
    model.vis_period = 0
    model(inputs)  # once: the picture's own pass has left no trace in the statistics
    torch.testing.assert_close(model.state_dict(), after)


def test_a_batch_norm_sees_every_batch_once_with_pictures(models, shapes):
    _, model = models("plain")
    image = pictures(shapes, 1)[0]
    model.train().vis_period = 1
    count = model.head.deconv.deconv1.bn.num_batches_tracked.clone()
    with EventStorage(0):
        model([as_input(image, truth(image, 1))])
    assert model.head.deconv.deconv1.bn.num_batches_tracked == count + 1


@pytest.mark.parametrize("name", ["dcn", "retinanet"])
def test_a_checkpoint_of_the_embedded_engine_loads_here(tmp_path, shapes, name):
    ours, image = embedded(name, seed=5), pictures(shapes, 1)[0]
    path = tmp_path / "model.pth"
    save_checkpoint(path, {"model": ours.state_dict(), "class_names": list("abcde")})
    for load in (
        lambda m: load_weights(m, str(path), detector=True),
        lambda m: DetectionCheckpointer(m).load(str(path)),
        lambda m: m.load_state_dict(torch.load(path, weights_only=True)["model"], strict=True),
    ):
        theirs = build_model(small_cfg(name)).eval()
        load(theirs)
        with torch.no_grad():
            (a,), (b,) = ours([image]), theirs([as_input(image)])
        size = tuple(image.shape[-2:])
        assert_same_detections(to_image(a, size, size), as_detections(b))


@pytest.mark.parametrize("name", ["dcn", "retinanet"])
def test_a_checkpoint_from_here_loads_in_the_embedded_engine(tmp_path, shapes, name):
    image = pictures(shapes, 1)[0]
    torch.manual_seed(1)
    theirs = build_model(small_cfg(name)).eval()
    with torch.no_grad():
        theirs.head.cls_score.weight.normal_(std=0.2)
    DetectionCheckpointer(theirs, str(tmp_path)).save("model", iteration=3)
    ours = embedded(name, seed=9)
    extras = load_weights(ours, str(tmp_path / "model.pth"), detector=True)
    assert extras["iteration"] == 3
    ours.load_state_dict(theirs.state_dict(), strict=True)
    load_weights(ours, str(tmp_path / "model.pth"), detector=True)
    with torch.no_grad():
        (a,), (b,) = ours([image]), theirs([as_input(image)])
    size = tuple(image.shape[-2:])
    assert_same_detections(to_image(a, size, size), as_detections(b))


def test_detectron2s_predictor_takes_it(tmp_path, shapes):
    ours = embedded("plain", seed=2)
    path = tmp_path / "model.pth"
    save_checkpoint(path, {"model": ours.state_dict()})
    opts = ["MODEL.WEIGHTS", str(path), "INPUT.MIN_SIZE_TEST", "96", "DATASETS.TEST", "()"]
    rgb = pictures(shapes, 1)[0].numpy().transpose(1, 2, 0)
    output = DefaultPredictor(small_cfg("plain", *opts))(rgb[:, :, ::-1])
    found = output["instances"]
    assert found.image_size == rgb.shape[:2] and 0 < len(found) <= 100


def test_it_can_be_made_without_a_config():
    made = build_model(small_cfg("plain"))
    again = OneNet(
        backbone=made.backbone,
        head=made.head,
        criterion=made.criterion,
        in_features=made.in_features,
        pixel_mean=[0.0] * 3,
        pixel_std=[1.0] * 3,
    )
    assert META_ARCH_REGISTRY.get("OneNet") is OneNet
    assert again.device.type == "cpu" and again.vis_period == 0


def test_another_backbone_of_detectron2_gives_the_padding(shapes):
    """A backbone that no file of ours names, with strides that 32 does not hold."""
    opts = ["MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"]
    opts += ["MODEL.RESNETS.OUT_FEATURES", "['res2', 'res3', 'res4', 'res5']"]
    opts += ["MODEL.FPN.IN_FEATURES", "['res2', 'res3', 'res4', 'res5']"]
    opts += ["MODEL.OneNet.IN_FEATURES", "['p2', 'p3', 'p4', 'p5', 'p6']"]
    model = build_model(small_cfg("fcos", *opts)).eval()
    assert model.head.strides == (4, 8, 16, 32, 64)
    assert model.size_divisibility == 32
    image = pictures(shapes, 1)[0]
    with torch.no_grad():
        assert len(model([as_input(image)])[0]["instances"]) > 0


def test_a_head_and_a_matcher_of_the_users_own(shapes):
    head = HEAD_REGISTRY.get("CenterNet")

    class FirstMatcher(MinCostMatcher):
        def choose(self, cost):
            targets = torch.arange(cost.shape[1])
            return torch.zeros_like(targets), targets

    HEAD_REGISTRY._do_register("Mine", lambda cfg, maps: head(cfg, maps))
    MATCHER_REGISTRY._do_register("first", lambda cfg: FirstMatcher(**matcher_options(cfg)))
    try:
        opts = ["MODEL.OneNet.HEAD", "Mine", "MODEL.OneNet.MATCHER", "first"]
        model = build_model(small_cfg("plain", *opts))
        image = pictures(shapes, 1)[0]
        losses = model.train()([as_input(image, truth(image, 3))])
        assert type(model.criterion.matcher) is FirstMatcher
        assert all(loss.isfinite() for loss in losses.values())
    finally:
        for registry, name in ((HEAD_REGISTRY, "Mine"), (MATCHER_REGISTRY, "first")):
            del registry._obj_map[name]


def test_the_rules_of_other_detectors_give_losses(shapes):
    model = build_model(small_cfg("plain")).train()
    batch = [as_input(image, truth(image, 3)) for image in pictures(shapes, 2)]
    for name in ("iou_threshold", "points", "centre", "atss", "simota", "alignment"):
        cfg = small_cfg("plain", "MODEL.OneNet.MATCHER", name)
        model.criterion = build_criterion(cfg).to(model.pixel_mean.device)
        losses = model(batch)
        assert all(loss.isfinite() and loss > 0 for loss in losses.values()), name


def test_detectron2s_config_knows_the_mapper_and_the_model():
    cfg = get_cfg()
    assert cfg.MODEL.OneNet.HEAD == "CenterNet" and cfg.MODEL.META_ARCHITECTURE == "OneNet"
    mapper = OneNetDatasetMapper(cfg, is_train=False)
    assert not mapper.is_train and np.shape(mapper.resize) == (1,)
