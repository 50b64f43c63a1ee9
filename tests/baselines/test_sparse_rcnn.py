"""Sparse R-CNN: the original's numbers and names, values by hand, and edge cases."""

from __future__ import annotations

import json
import math

import pytest
import torch
from helpers import golden
from helpers.configs import ROOT
from helpers.runs import load, train, write_config
from helpers.small_detector import MEAN, STD, image, targets
from torch import nn

from onenet.backbones.resnet import Shape
from onenet.baselines.queries import initial_boxes
from onenet.baselines.sparse_rcnn import DynamicHead, SparseRCNN, Stage, pool
from onenet.baselines.sparse_rcnn_config import sparse_rcnn_options
from onenet.checkpoints.weights import load_weights
from onenet.errors import ConfigError
from onenet.inference.optimize import prepare
from onenet.lightning.build import build_detector
from onenet.lightning.config import get_cfg, load_cfg
from onenet.structures import Targets

CONFIG = ROOT / "configs" / "baselines" / "sparsercnn.res50.yaml"
STRIDES = (4, 8, 16, 32)
SMALL = {
    "MODEL__META_ARCHITECTURE": "SparseRCNN",
    "MODEL__BACKBONE__NAME": "build_resnet_fpn_backbone",
    "MODEL__FPN__IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL__FPN__OUT_CHANNELS": 16,
    "MODEL__OneNet__IN_FEATURES": ["p2", "p3", "p4", "p5"],
    "MODEL__OneNet__MATCHER": "hungarian",
    "MODEL__SparseRCNN__NUM_PROPOSALS": 7,
    "MODEL__SparseRCNN__NUM_HEADS": 2,
    "MODEL__SparseRCNN__NHEADS": 2,
    "MODEL__SparseRCNN__DIM_FEEDFORWARD": 16,
    "MODEL__SparseRCNN__DIM_DYNAMIC": 4,
}

close = torch.testing.assert_close


class Pyramid(nn.Module):
    """Maps of 8 channels and stride 4 to 32: the images' own, or given ones."""

    def __init__(self, maps=None):
        super().__init__()
        self.maps = maps
        self.shapes = {f"p{i + 2}": Shape(8, stride) for i, stride in enumerate(STRIDES)}

    def forward(self, x):
        x = x.repeat(1, 3, 1, 1)[:, :8]
        maps = self.maps or [nn.functional.avg_pool2d(x, stride) for stride in STRIDES]
        return dict(zip(self.shapes, maps, strict=True))


def model(maps=None, *, proposals=9, stages=3, classes=5, **changes) -> SparseRCNN:
    """Of the golden file's widths."""
    cfg = get_cfg()
    cfg.merge_from_list(
        [
            "MODEL.META_ARCHITECTURE", "SparseRCNN", "MODEL.OneNet.MATCHER", "hungarian",
            "MODEL.OneNet.IN_FEATURES", ["p2", "p3", "p4", "p5"],
            "MODEL.OneNet.NUM_CLASSES", classes, "TEST.DETECTIONS_PER_IMAGE", 9,
            "MODEL.PIXEL_MEAN", list(MEAN), "MODEL.PIXEL_STD", list(STD),
        ]
    )  # fmt: skip
    keys = {"NUM_PROPOSALS": proposals, "NUM_HEADS": stages, "NHEADS": 2, "DIM_FEEDFORWARD": 12}
    for key, value in {**keys, "DIM_DYNAMIC": 4, **changes}.items():
        cfg.MODEL.SparseRCNN[key] = value
    backbone = Pyramid(maps)
    torch.manual_seed(0)
    return SparseRCNN(**sparse_rcnn_options(cfg, backbone, backbone.shapes))


@torch.no_grad()
def still(made: SparseRCNN) -> SparseRCNN:
    """The model with a class probability of 1/2 everywhere, whose stages leave the boxes alone."""
    for stage in made.head.head_series:
        for layer in (stage.class_logits, stage.bboxes_delta):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
    return made


# The original's numbers and names.


@pytest.fixture(scope="module")
def original():
    """The golden file, and a model with its weights and maps."""
    arrays = {k: v.float() if v.is_floating_point() else v for k, v in golden.load(FILE).items()}
    made = model([arrays[f"input{i}"] for i in range(4)])
    made.load_state_dict({k[7:]: v for k, v in arrays.items() if k.startswith("weight/")})
    return arrays, made


FILE = "sparse_rcnn"


def test_pooled_features_are_the_originals(original):
    """To the bit, on the same machine: the same boxes, levels and kernel."""
    arrays, made = original
    boxes = initial_boxes(made.init_proposal_boxes.weight, arrays["sizes"])
    sizes = (boxes[..., 2:] - boxes[..., :2]).prod(dim=-1).sqrt()
    levels = (4 + (sizes / 224).log2().floor()).clamp(2, 5).unique().tolist()
    assert levels == [2, 3, 4, 5]
    pooled = pool(made.backbone.maps, STRIDES, boxes)
    close(pooled[:, :2], arrays["pooled"], rtol=1e-6, atol=1e-6)


def test_every_stage_predicts_what_the_originals_does(original):
    arrays, made = original
    images = [torch.zeros(3, *size) for size in arrays["sizes"].tolist()]
    with torch.inference_mode():
        stages = made.eval().stages(*made.inputs(images))
    assert len(stages) == 3
    for stage, logits, boxes in zip(stages, arrays["logits"], arrays["boxes"], strict=True):
        close(stage.logits, logits, rtol=1e-4, atol=1e-5)
        close(stage.boxes, boxes, rtol=1e-4, atol=1e-3)


def test_losses_and_gradients_are_the_originals(original):
    """It numbers the stages from 0, and the last has no number."""
    arrays, made = original
    sizes = [tuple(size) for size in arrays["sizes"].tolist()]
    goals = [
        Targets(arrays[f"target_boxes{i}"], arrays[f"target_labels{i}"], size)
        for i, size in enumerate(sizes)
    ]
    made.train().zero_grad()
    losses = made([torch.zeros(3, *size) for size in sizes], goals)
    assert len(losses) == 9
    for term in ("loss_ce", "loss_giou", "loss_bbox"):
        for ours, theirs in (("", "_0"), ("_2", "_1"), ("_3", "")):
            close(losses[term + ours], arrays[f"loss/{term}{theirs}"], rtol=1e-5, atol=1e-5)
    sum(losses.values()).backward()
    parameters = dict(made.named_parameters())
    grads = [key for key in arrays if key.startswith("grad/")]
    assert len(grads) == 4
    for key in grads:
        close(parameters[key[5:]].grad, arrays[key], rtol=1e-4, atol=1e-4)


def test_detections_are_the_originals(original):
    arrays, made = original
    images = [torch.zeros(3, *size) for size in arrays["sizes"].tolist()]
    with torch.inference_mode():
        found = made.eval()(images)
    for i, one in enumerate(found):
        close(one.scores, arrays[f"scores{i}"], rtol=1e-4, atol=1e-5)
        expected = golden.as_set(arrays[f"found_boxes{i}"].round(decimals=1), arrays[f"labels{i}"])
        assert golden.as_set(one.boxes.round(decimals=1), one.labels) == expected


def test_the_checkpoint_of_the_originals_r50_config_fits():
    """Names and shapes of sparsercnn.res50.100pro.3x.yaml, all of them."""
    with torch.device("meta"):
        made = build_detector(load_cfg(CONFIG, ["MODEL.WEIGHTS", ""]))
    theirs = json.loads((golden.FOLDER / "sparse_rcnn_keys.json").read_text())
    assert {name: list(value.shape) for name, value in made.state_dict().items()} == theirs


# By hand.


def test_features_are_pooled_at_the_middle_of_the_boxs_cells():
    """A map that holds its cells' x and y, from the middle of the first at half a stride."""
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    ramp = torch.stack((x, y))[None]
    maps = [ramp, *(torch.zeros(1, 2, 32 // k, 32 // k) for k in (2, 4, 8))]
    found = pool(maps, STRIDES, torch.tensor([[[20.0, 40.0, 76.0, 68.0]]]))
    # 7 cells of 8 × 4 px: x = 24, 32 … px and y = 42, 46 …, in strides of 4, less half a cell.
    close(found[0, 0, 0], torch.arange(24.0, 80.0, 8.0) / 4 - 0.5)
    close(found[0, 1, :, 0], torch.arange(42.0, 70.0, 4.0) / 4 - 0.5)


LEVELS = {0: 2, 20: 2, 111.9: 2, 112: 3, 224: 4, 447: 4, 448: 5, 500: 5}


@pytest.mark.parametrize(("side", "level"), LEVELS.items())
def test_a_box_is_pooled_from_the_level_of_its_size(side, level):
    maps = [torch.full((2, 1, 600 // s, 600 // s), float(i + 2)) for i, s in enumerate(STRIDES)]
    boxes = torch.tensor([[[90.0, 90, 90 + side, 90 + side]], [[0.0, 0, 60, 60]]])
    found = pool(maps, STRIDES, boxes)
    assert found.shape == (2, 1, 7, 7)
    assert found[:, 0, 0, 0].tolist() == [level, 2]


def test_a_stage_shifts_by_half_a_box_for_each_delta_and_grows_by_its_exponential():
    torch.manual_seed(0)
    stage = Stage(8, 1, num_attention_heads=2, feedforward=8, hidden=4)
    nn.init.zeros_(stage.bboxes_delta.weight)
    stage.bboxes_delta.bias.data = torch.tensor([2.0, -1.0, math.log(2), 100.0])
    boxes = torch.tensor([[[10.0, 10.0, 30.0, 50.0]]])
    _, _, refined = stage(torch.randn(1, 1, 8), boxes, torch.randn(1, 8, 7, 7))
    # 20 × 40 px around (20, 30): by 1 width and -0.5 heights to (40, 10), 40 × 40 · 6250 px.
    close(refined[0, 0], torch.tensor([20.0, 10 - 125_000, 60.0, 10 + 125_000]))


def test_losses_of_whole_images_by_hand():
    made = still(model(proposals=3, stages=2, classes=2)).train()
    half = targets([0, 0, 20, 32])  # the left half of 32 × 40 px
    losses = made([image(32, 40)], [half])
    # Focal loss at p = 1/2: one positive, 0.25 · (1/2)², and five negatives, 0.75 · (1/2)², times
    # ln 2. The whole image is twice the object and its hull: GIoU 1/2; one side of four is 1/2 off.
    expected = {"ce": 2 * math.log(2) * (0.0625 + 5 * 0.1875), "giou": 2 * 0.5, "bbox": 5 * 0.5}
    for stage in ("", "_2"):
        for term, value in expected.items():
            close(losses[f"loss_{term}{stage}"], torch.tensor(value))


def test_each_stage_learns_its_own_step():
    """The boxes that a stage starts from get no gradient; the initial ones do."""
    made = model(stages=2).train()
    losses = made([image(32, 40)], [targets([3, 4, 20, 30])])
    (losses["loss_bbox_2"] + losses["loss_giou_2"]).backward(retain_graph=True)
    first, second = (stage.bboxes_delta for stage in made.head.head_series)
    assert first.weight.grad is None and second.weight.grad.any()
    assert made.init_proposal_boxes.weight.grad is None
    assert made.init_proposal_features.weight.grad.any()
    losses["loss_bbox"].backward()
    assert first.weight.grad.any() and made.init_proposal_boxes.weight.grad.any()


def test_it_starts_with_whole_images_and_the_prior_of_the_focal_loss():
    made = model().eval()
    assert made.init_proposal_boxes.weight.unique(dim=0).tolist() == [[0.5, 0.5, 1.0, 1.0]]
    for stage in made.head.head_series:
        close(stage.class_logits.bias.sigmoid(), torch.full((5,), 0.01))
    predictions = made.predict([image(20, 30)])
    assert predictions.samples.unique(dim=0).tolist() == [[0, 0, 30, 20]]
    assert predictions.samples.shape == (9, 4) and not predictions.levels.any()


# Edge cases.


def test_images_without_objects_train():
    made = model(classes=1).train()
    losses = made([image(32, 40), image(20, 20, 1)], [targets(), targets(size=(20, 20))])
    for name, loss in losses.items():
        assert loss.isfinite() and (loss > 0) == name.startswith("loss_ce"), name
    sum(losses.values()).backward()
    grads = [p.grad for p in made.parameters() if p.grad is not None]
    assert all(grad.isfinite().all() for grad in grads)


def test_more_objects_than_proposals_train():
    made = model(proposals=2).train()
    losses = made([image(32, 40)], [targets([0, 0, 9, 9], [9, 9, 30, 30], [20, 3, 33, 9])])
    assert all(loss.isfinite() for loss in losses.values())


def test_images_of_mixed_sizes_detect_as_each_alone():
    """Also where both are padded to one size: each has its own initial boxes."""
    made = model().eval()
    images = [image(20, 30), image(32, 32, 1), image(40, 64, 2)]
    with torch.inference_mode():
        found = made(images)
        alone = [made([one])[0] for one in images]
    for a, b in zip(found, alone, strict=True):
        close(a.boxes, b.boxes, rtol=1e-4, atol=1e-3)
        close(a.scores, b.scores)


def test_mixed_precision_trains_boxes_and_losses_in_float32():
    made = model().train()
    with torch.autocast("cpu", torch.bfloat16):
        stages = made.stages(*made.inputs([image(32, 40)]))
        losses = made([image(32, 40)], [targets([3, 4, 20, 30])])
    assert {x.dtype for s in stages for x in (s.logits, s.boxes, s.samples)} == {torch.float32}
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in made.parameters() if p.grad is not None)


def test_half_precision_keeps_the_boxes_close():
    made, images = model().eval(), [image(40, 64)]
    with torch.inference_mode():
        expected = made.predict(images)
        found = prepare(made, precision="bfloat16").predict(images)
    assert made.head.head_series[0].bboxes_delta.weight.dtype == torch.float32
    assert found.boxes.dtype == torch.float32
    close(found.boxes, expected.boxes, rtol=0.05, atol=3.0)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("MODEL.SparseRCNN.NHEADS", 3, "NHEADS.*divide the 256 channels.*got 3"),
        ("MODEL.OneNet.IN_FEATURES", ["p2", "p4"], r"IN_FEATURES.*double.*\[4, 16\]"),
        ("MODEL.OneNet.LOCATION_COST", "predefined", "predefined.*SparseRCNN has queries"),
        ("MODEL.SparseRCNN.NUM_PROPOSALS", 0, "NUM_PROPOSALS is 0"),
        ("MODEL.OneNet.AUX.ENABLED", True, "AUX.ENABLED.*False"),
    ],
)
def test_what_does_not_fit_is_refused(key, value, words):
    with pytest.raises(ConfigError, match=words), torch.device("meta"):
        build_detector(load_cfg(CONFIG, ["MODEL.WEIGHTS", "", key, str(value)]))


# Training.


@pytest.fixture(scope="module")
def run(shapes, tmp_path_factory):
    """The config and folder of a short training."""
    folder = tmp_path_factory.mktemp("sparse")
    small = {**SMALL, "SOLVER__MAX_ITER": 2, "SOLVER__IMS_PER_BATCH": 2}
    config = write_config(folder, shapes, **small)
    train(config)
    return config, folder / "run"


def test_it_trains_saves_and_detects(run):
    config, folder = run
    found = json.loads((folder / "inference" / "coco_instances_results.json").read_text())
    assert found and all(len(one["bbox"]) == 4 for one in found)
    state = load(folder / "model_final.pth")["model"]
    assert state["init_proposal_boxes.weight"].shape == (7, 4)


def test_fine_tuning_on_other_classes_starts_the_class_layers_alone(run, caplog):
    config, folder = run
    cfg = load_cfg(config, ["MODEL.OneNet.NUM_CLASSES", "2"])
    made = build_detector(cfg)
    before = {name: value.clone() for name, value in made.state_dict().items()}
    load_weights(made, str(folder / "model_final.pth"), new_classes=True)
    trained = load(folder / "model_final.pth")["model"]
    after = made.state_dict()
    kept = [name for name in after if "class_logits" in name]
    assert len(kept) == 4 and all(torch.equal(after[name], before[name]) for name in kept)
    others = [n for n in after if n not in kept and "num_batches" not in n]
    assert all(torch.equal(after[name], trained[name]) for name in others)


def test_one_stage_is_enough():
    head = DynamicHead(
        in_channels=[8], strides=[4], num_classes=1, num_stages=1, num_attention_heads=1,
        feedforward=4, hidden=2,
    )  # fmt: skip
    boxes = torch.tensor([[[0.0, 0, 8, 8]]])
    ((logits, refined),) = head([torch.randn(1, 8, 4, 4)], boxes, torch.randn(1, 8))
    assert logits.shape == (1, 1, 1) and refined.shape == (1, 1, 4)
