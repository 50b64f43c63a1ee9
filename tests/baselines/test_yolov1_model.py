"""YOLOv1 as a model: detections, what a network learns, keys, and trainings."""

from __future__ import annotations

import pytest
import torch
from helpers.centernet_example import targets
from helpers.configs import ROOT
from helpers.runs import assert_same, load, metrics, train, write_config
from helpers.yolov1_example import cells, total
from torch import nn

from onenet.baselines.yolov1 import Cells, YOLOCriterion, YOLOHead, YOLOv1
from onenet.baselines.yolov1_config import yolov1_options
from onenet.checkpoints.files import save_checkpoint
from onenet.checkpoints.weights import load_weights
from onenet.errors import ConfigError
from onenet.inference.optimize import prepare
from onenet.lightning.build import build_detector
from onenet.lightning.config import load_cfg
from onenet.lightning.predictor import build_predictor

close = torch.testing.assert_close


FILES = ROOT / "configs" / "baselines"


class Given(nn.Module):
    """Stands in for a head."""

    def __init__(self, found):
        super().__init__()
        self.found = found

    def forward(self, features):
        return self.found


class Backbone(nn.Module):
    """One map of stride 32; keeps the batch that it is given."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 32, stride=32)

    def forward(self, x):
        self.batch = x
        return {"map": self.conv(x).relu()}


def detector(head, *, size=64, k=100, nms=0.5, mean=0.0):
    return YOLOv1(
        backbone=Backbone(),
        head=head,
        criterion=YOLOCriterion(),
        in_features=["map"],
        pixel_mean=[mean] * 3,
        pixel_std=[1, 1, 1],
        max_detections=k,
        input_size=size,
        nms_iou=nms,
    )


def picture(height=20, width=40):
    return torch.zeros(3, height, width, dtype=torch.uint8)


@torch.no_grad()
def scene():
    """Cell 1: box 0 and a shifted one, IoU 0.6, of class 1; cell 2: a box of both classes."""
    given = cells()
    given.places[0, 1] = torch.tensor([[0.4, 0.4, 0.5, 0.5], [0.525, 0.4, 0.5, 0.5]])
    given.confidence[0, 1] = torch.tensor([0.8, 1.5])
    given.classes[0, 1] = torch.tensor([-0.5, 0.6])
    given.places[0, 2] = torch.tensor([0.5, 0.5, 0.5, -0.5])
    given.confidence[0, 2] = torch.tensor([0.5, -1.0])
    given.classes[0, 2] = torch.tensor([0.4, 3.0])
    return given


def found_by(model, *images):
    with torch.inference_mode():
        return model.eval()(list(images))


def test_detections_by_hand():
    """Confidence × class, at most 1; of 40 × 20 px: 10 × 5 px around (30.5, 4) and (10, 15)."""
    model = detector(Given(scene()))
    (found,) = found_by(model, picture())
    close(found.scores, torch.tensor([1.0, 0.9, 0.2]))
    assert found.labels.tolist() == [1, 1, 0]
    close(found.boxes[1], torch.tensor([25.5, 1.5, 35.5, 6.5]))
    close(found.boxes[[0, 2]], torch.tensor([[5, 12.5, 15, 17.5]]).expand(2, 4))
    # Two negative factors are no score, and no detection.
    assert len(found) == 3


def test_nms_is_class_wise_and_comes_before_the_limit():
    all_of_it = found_by(detector(Given(scene()), nms=1.0), picture())[0]
    close(all_of_it.scores, torch.tensor([1.0, 0.9, 0.48, 0.2]))
    assert found_by(detector(Given(scene()), nms=1.0, k=3), picture())[0].labels.tolist() == [1] * 3
    assert found_by(detector(Given(scene()), k=3), picture())[0].labels.tolist() == [1, 1, 0]


def test_boxes_are_in_px_of_each_image():
    both = Cells(*(torch.cat([x, x]) for x in vars(scene()).values() if not isinstance(x, int)), 2)
    small, large = found_by(detector(Given(both)), picture(), picture(200, 80))
    close(large.boxes, small.boxes * torch.tensor([2.0, 10, 2, 10]))
    assert found_by(detector(Given(both))) == []


def test_the_network_sees_the_whole_image_as_a_square():
    model = detector(Given(scene()), mean=10.0)
    image = picture(20, 200)
    image[:, :, 100:] = 90
    found_by(model, image)
    seen = model.backbone.batch
    assert seen.shape == (1, 3, 64, 64)
    close(seen[..., :30], torch.full((1, 3, 64, 30), -10.0))
    close(seen[..., 34:], torch.full((1, 3, 64, 30), 80.0))


def head(**more):
    torch.manual_seed(0)
    options = {"in_channels": 8, "in_size": 2, "num_classes": 1, "channels": 8, "hidden": 32}
    return YOLOHead(**{**options, "grid": 2, "dropout": 0.0, **more})


def test_every_box_overlaps_with_its_cell_at_first():
    found = head(in_size=3, num_classes=3, grid=7).eval()([torch.randn(2, 8, 3, 3)])
    assert found.places.shape == (2, 49, 2, 4) and found.classes.shape == (2, 49, 3)
    close(found.places, torch.full((2, 49, 2, 4), 0.5), atol=0.1, rtol=0)
    close(found.confidence, torch.zeros(2, 49, 2), atol=0.1, rtol=0)


def test_a_model_learns_an_image_by_heart_and_that_another_is_empty():
    torch.manual_seed(0)
    model = detector(head(in_size=4), size=128, mean=128.0)
    image = torch.randint(0, 256, (3, 48, 96), dtype=torch.uint8)
    goals = [targets([8, 4, 40, 16], [60, 20, 90, 44], size=(48, 96)), targets(size=(48, 96))]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        found = model.train()([image, 255 - image], goals)
        optimizer.zero_grad()
        total(found).backward()
        optimizer.step()
    mine, nothing = found_by(model, image, 255 - image)
    order = mine.boxes[:2, 0].argsort()
    assert (mine.boxes[order] - goals[0].boxes).abs().max() < 4
    assert mine.scores[1] > 0.5 and (nothing.scores < 0.1).all()


def test_images_in_a_batch_do_not_meet():
    model = detector(head(), mean=128.0)
    images = [torch.randint(0, 256, (3, 40, w), dtype=torch.uint8) for w in (64, 90)]
    alone = [found_by(model, image)[0] for image in images]
    for a, b in zip(found_by(model, *images), alone, strict=True):
        close((a.boxes, a.scores), (b.boxes, b.scores), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("precision", "within"), [("float32", 1e-4), ("bfloat16", 0.02)])
def test_a_prepared_model_finds_the_same(precision, within):
    plain, fast = (detector(head(in_size=4), size=128, mean=128.0, nms=1.0) for _ in range(2))
    for model in (plain, fast):
        nn.init.constant_(model.head.cls_score.bias, 1.0)
        nn.init.constant_(model.head.box_pred.bias.view(-1, 5)[:, 4], 0.5)
    fast.load_state_dict(plain.state_dict())
    image = torch.randint(0, 256, (3, 40, 64), dtype=torch.uint8)
    prepare(fast, precision=precision)
    wanted, found = (found_by(model, image)[0] for model in (plain, fast))
    assert len(found) == len(wanted) == 8
    order, others = (one.boxes.sum(dim=1).argsort() for one in (wanted, found))
    close(found.boxes[others], wanted.boxes[order], rtol=within, atol=64 * within)
    close(found.scores[others], wanted.scores[order], rtol=within, atol=within)


TINY = [
    "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.OneNet.NUM_CLASSES", "3",
    "MODEL.YOLOv1.INPUT_SIZE", "96", "MODEL.YOLOv1.GRID", "5", "MODEL.YOLOv1.BOXES", "3",
    "MODEL.YOLOv1.CHANNELS", "16", "MODEL.YOLOv1.HIDDEN", "24", "MODEL.YOLOv1.DROPOUT", "0.25",
    "MODEL.YOLOv1.COORD_WEIGHT", "4", "MODEL.YOLOv1.NOOBJ_WEIGHT", "0.25",
    "MODEL.YOLOv1.NMS_THRESH", "0.75",
]  # fmt: skip


def build(*opts):
    torch.manual_seed(0)
    return build_detector(load_cfg(FILES / "yolov1.res18.yaml", [*TINY, *opts]))


def test_keys_reach_the_model():
    model = build()
    assert isinstance(model, YOLOv1) and (model.input_size, model.nms_iou) == (96, 0.75)
    assert (model.criterion.coord_weight, model.criterion.noobj_weight) == (4.0, 0.25)
    assert model.head.convs[0].weight.shape == (16, 512, 3, 3)
    assert model.head.hidden.weight.shape == (24, 16 * 2 * 2)
    assert model.head.box_pred.weight.shape == (25 * 3 * 5, 24)
    assert model.head.cls_score.weight.shape == (25 * 3, 24) and model.head.dropout.p == 0.25


def test_the_paper_s_head_on_resnet50():
    """7 × 7 maps of 1,024 channels, 4,096 outputs, 7 · 7 · (2 · 5 + K) numbers."""
    cfg = load_cfg(FILES / "yolov1.res50.yaml", ["MODEL.OneNet.NUM_CLASSES", "20"])
    with torch.device("meta"):
        backbone = nn.Identity()
        shape = type("Shape", (), {"channels": 2048, "stride": 32})
        made = yolov1_options(cfg, backbone, {"res5": shape})["head"]
        found = made(torch.empty(1, 1, 2048, 14, 14))
    assert made.hidden.weight.shape == (4096, 7 * 7 * 1024) and made.dropout.p == 0.5
    assert found.places.numel() + found.confidence.numel() + found.classes.numel() == 7 * 7 * 30


@pytest.mark.parametrize(
    ("opts", "told"),
    [
        (["MODEL.YOLOv1.INPUT_SIZE", "450"], "INPUT_SIZE is 450; expected a multiple of 32 px"),
        (["MODEL.OneNet.NMS", "True"], "MODEL.YOLOv1.NMS_THRESH"),
        (["MODEL.OneNet.IN_FEATURES", "['res4', 'res5']"], "IN_FEATURES is .*expected one map"),
        (["MODEL.YOLOv1.DROPOUT", "1.0"], "MODEL.YOLOv1.DROPOUT is 1.0.*below 1"),
        (["MODEL.YOLOv1.GRID", "0"], "MODEL.YOLOv1.GRID is 0.*above 0"),
        (["MODEL.YOLOv1.NMS_THRESH", "1.5"], "MODEL.YOLOv1.NMS_THRESH is 1.5.*from 0 to 1"),
        (["MODEL.YOLOv1.NOOBJ_WEIGHT", "-1"], "MODEL.YOLOv1.NOOBJ_WEIGHT is -1.*from 0 on"),
    ],
)
def test_values_that_do_not_fit_are_refused(opts, told):
    with pytest.raises(ConfigError, match=told):
        build("MODEL.RESNETS.OUT_FEATURES", "['res4', 'res5']", *opts)


def test_new_classes_start_the_class_layer_anew_and_known_ones_are_mapped(tmp_path):
    file, names = tmp_path / "abc.pth", ["a", "b", "c"]
    model = build()
    save_checkpoint(file, {"model": model.state_dict(), "class_names": names})
    other = build("MODEL.OneNet.NUM_CLASSES", "2")
    load_weights(other, str(file), new_classes=True)
    close(other.head.box_pred.weight, model.head.box_pred.weight)
    mapped = build()
    load_weights(mapped, str(file), new_classes=True, class_names=["c", "a", "b"])
    rows = model.head.cls_score.weight.view(25, 3, 24)
    close(mapped.head.cls_score.weight.view(25, 3, 24), rows[:, [2, 0, 1]])


@pytest.fixture(scope="module")
def trained(shapes, tmp_path_factory):
    """The config file of a run of four iterations with dropout, which is in ``run`` beside it."""
    changes = {"INPUT_SIZE": 64, "CHANNELS": 8, "HIDDEN": 16}
    file = write_config(
        tmp_path_factory.mktemp("yolov1"),
        shapes,
        MODEL__META_ARCHITECTURE="YOLOv1",
        MODEL__OneNet__IN_FEATURES=["res5"],
        SOLVER__MAX_ITER=4,
        SOLVER__STEPS=[],
        SOLVER__WARMUP_ITERS=0,
        SOLVER__IMS_PER_BATCH=2,
        **{f"MODEL__YOLOv1__{key}": value for key, value in changes.items()},
    )
    assert set(train(file)) >= {"bbox/AP", "bbox/AP50"}
    return file


def test_it_trains_evaluates_and_predicts(trained):
    weights = trained.parent / "run" / "model_final.pth"
    logged = next(line for line in metrics(trained.parent / "run") if "total_loss" in line)
    names = {"loss_centre", "loss_size", "loss_object", "loss_empty", "loss_class"}
    assert {key for key in logged if key.startswith("loss_")} == names
    predictor = build_predictor(str(trained), ["MODEL.WEIGHTS", str(weights)])
    image = torch.randint(0, 256, (50, 70, 3), dtype=torch.uint8).numpy()
    assert predictor(image).boxes.shape[1] == 4


def test_an_interrupted_run_draws_the_same_dropout(trained, tmp_path):
    output = tmp_path / "again"
    train(trained, "OUTPUT_DIR", output, "SOLVER.MAX_ITER", 2, "DATASETS.TEST", "()")
    train(trained, "--resume", "OUTPUT_DIR", output, "DATASETS.TEST", "()")
    states = [load(run / "model_final.pth")["model"] for run in (output, trained.parent / "run")]
    assert_same(*states)
