"""torchvision's detectors in this engine: the same images, targets, detections and files."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from helpers.configs import ROOT
from helpers.runs import metrics, train, write_config
from torchvision.models import detection as tv
from torchvision.models.detection import ssd
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.models.vgg import cfgs, make_layers

from onenet.baselines.registry import BASELINE_REGISTRY
from onenet.checkpoints.files import save_checkpoint
from onenet.checkpoints.weights import load_weights
from onenet.errors import CheckpointError, ConfigError
from onenet.lightning.build import build_detector
from onenet.lightning.config import load_cfg
from onenet.lightning.predictor import build_predictor
from onenet.structures import Targets

close = torch.testing.assert_close
BASELINES = ROOT / "configs" / "baselines"
FILES = {
    "torchvision.RetinaNet": "retinanet.res50.yaml",
    "torchvision.FCOS": "fcos.res50.yaml",
    "torchvision.FasterRCNN": "fasterrcnn.res50.yaml",
    "torchvision.SSD300": "ssd300.vgg16.yaml",
    "torchvision.SSDlite320": "ssdlite320.mobilenetv3.yaml",
}
# Two to train with; SSD300 takes seconds to build.
SMALL = ["torchvision.RetinaNet", "torchvision.FCOS", "torchvision.FasterRCNN"]
QUICK = [*SMALL, "torchvision.SSDlite320"]
THIN = [
    "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.OneNet.NUM_CLASSES", "6",
    "MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64",
    "MODEL.FPN.OUT_CHANNELS", "64", "MODEL.TORCHVISION.SCORE_THRESH", "0.0",
]  # fmt: skip


def config(name: str, *opts: str):
    return load_cfg(BASELINES / FILES[name], [*THIN, *opts])


@pytest.fixture(scope="module")
def models():
    """One of each kind, by its name, made when it is first asked for."""
    made = {}

    def get(name):
        if name not in made:
            torch.manual_seed(0)
            made[name] = build_detector(config(name))
        return made[name]

    return get


def image(height=64, width=96, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


def targets(*boxes, labels=None, size=(64, 96)):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    labels = [0] * len(boxes) if labels is None else labels
    return Targets(boxes, torch.tensor(labels, dtype=torch.int64), size)


def total(losses):
    return sum(losses.values()).item()


def test_every_detector_of_torchvision_has_a_file():
    names = {name for name, _ in BASELINE_REGISTRY if name.startswith("torchvision.")}
    assert set(FILES) == names
    for name in FILES:
        assert load_cfg(BASELINES / FILES[name]).MODEL.META_ARCHITECTURE == name


@pytest.mark.parametrize("name", QUICK)
def test_losses_have_gradients_and_names(models, name):
    model = models(name).train()
    losses = model(
        [image(), image(64, 64, 1)],
        [targets([8, 8, 60, 40], [50, 10, 90, 60], labels=[0, 5]), targets(size=(64, 64))],
    )
    assert all(key.startswith("loss_") and not key.startswith("loss_loss") for key in losses)
    sum(losses.values()).backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []  # or else several processes would wait for each other
    model.zero_grad()


@pytest.mark.parametrize("name", QUICK)
def test_no_objects_and_boxes_without_area_are_background(models, name):
    model = models(name).train()
    torch.manual_seed(0)
    nothing = model([image(), image()], [targets(), targets()])
    torch.manual_seed(0)
    flat = targets([8, 8, 8, 40], [30, 9, 20, 5])
    degenerate = model([image(), image()], [flat, targets()])
    assert all(loss.isfinite() for loss in nothing.values())
    assert total(degenerate) == pytest.approx(total(nothing), rel=1e-4)


@pytest.mark.parametrize("name", QUICK)
def test_detections_are_of_the_given_image(models, name):
    model = models(name).eval()
    images = [image(), image(80, 64, 1)]
    with torch.inference_mode():
        found = model(images)
    for picture, detections in zip(images, found, strict=True):
        height, width = picture.shape[1:]
        assert 0 < len(detections) <= 100
        assert (detections.scores.diff() <= 0).all()
        assert set(detections.labels.tolist()) <= set(range(6))
        assert detections.boxes.min() >= 0
        assert (detections.boxes.amax(dim=0) <= torch.tensor([width, height] * 2)).all()


class Network(torch.nn.Module):
    """Stands in for a backbone; keeps the batch that it is given."""

    def forward(self, x):
        self.batch = x
        raise StopIteration


@pytest.mark.parametrize("name", QUICK)
def test_the_network_sees_images_as_input_says(name):
    """Normalised in their channels' order; only SSD changes their size."""
    model = build_detector(
        config(name, "MODEL.PIXEL_MEAN", "[10.0, 20.0, 30.0]", "MODEL.PIXEL_STD", "[1.0, 2.0, 4.0]")
    ).eval()
    model.backbone = Network()
    colour = torch.tensor([11, 24, 42], dtype=torch.uint8)
    with pytest.raises(StopIteration):
        model([colour[:, None, None].expand(3, 40, 70)])
    batch = model.backbone.batch
    size = (320, 320) if name == "torchvision.SSDlite320" else (64, 96)
    assert batch.shape == (1, 3, *size)
    close(batch[0, :, 20, 30], torch.tensor([1.0, 2.0, 3.0]))
    if size == (64, 96):
        close(batch[0, :, :40, :70], torch.tensor([1.0, 2, 3])[:, None, None].expand(3, 40, 70))
        assert not batch[0, :, 40:].any() and not batch[0, :, :, 70:].any()


@pytest.mark.parametrize("name", SMALL)
def test_the_outputs_are_torchvisions(models, name):
    """The plain class with the same weights, fed in torchvision's way."""
    model = models(name)
    plain = getattr(tv, name.partition(".")[2]).__new__(type(model).__mro__[2])
    plain.__dict__.update(model.__dict__)
    shift = 1 if name == "torchvision.FasterRCNN" else 0
    goal = {"boxes": torch.tensor([[8.0, 8, 60, 40]]), "labels": torch.tensor([2 + shift])}
    torch.manual_seed(0)
    theirs = plain.train()([image().float()], [goal])
    torch.manual_seed(0)
    ours = model.train()([image()], [targets([8, 8, 60, 40], labels=[2])])
    close(list(ours.values()), list(theirs.values()))
    with torch.inference_mode():
        theirs = plain.eval()([image().float()])[0]
        ours = model.eval()([image()])[0]
    close(ours.boxes, theirs["boxes"])
    assert torch.equal(ours.labels, theirs["labels"] - shift)


def test_ssd300_is_torchvisions(monkeypatch):
    """Its parts and its size; labels from 1 on inside, from 0 on outside."""
    # VGG-16 without its classifier, which takes seconds to make and is not used.
    features = make_layers(cfgs["D"], batch_norm=False)
    monkeypatch.setattr(ssd, "vgg16", lambda **_: SimpleNamespace(features=features))
    model = build_detector(config("torchvision.SSD300")).eval()
    assert isinstance(model, ssd.SSD) and model.transform.fixed_size == (300, 300)
    assert type(model.transform) is GeneralizedRCNNTransform
    assert (model.score_thresh, model.nms_thresh, model.topk_candidates) == (0.0, 0.45, 400)
    with torch.inference_mode():
        found = model([image()])[0]
    assert found.labels.min() >= 0 and found.labels.max() <= 5
    assert (found.boxes.amax(dim=0) <= torch.tensor([96, 64, 96, 64])).all()
    losses = model.train()([image()], [targets([8, 8, 60, 40])])
    assert set(losses) == {"loss_bbox_regression", "loss_classification"}


@pytest.mark.parametrize("name", QUICK)
def test_without_nms_more_is_found(name):
    """At IoU 1.0 nothing is suppressed: as many as the limit, and more than with NMS."""
    torch.manual_seed(0)
    opts = ["TEST.DETECTIONS_PER_IMAGE", "5000"]
    model = build_detector(config(name, "MODEL.TORCHVISION.NMS_THRESH", "0.01", *opts)).eval()
    torch.manual_seed(0)
    free = build_detector(config(name, "MODEL.TORCHVISION.NMS_THRESH", "1.0", *opts)).eval()
    with torch.inference_mode():
        assert len(free([image()])[0]) > len(model([image()])[0])


@pytest.mark.parametrize("name", QUICK)
def test_folded_batch_norms_change_nothing(name):
    torch.manual_seed(0)
    model = build_detector(config(name, "MODEL.RESNETS.NORM", "BN")).eval()
    plain = model.state_dict()
    with torch.inference_mode():
        before = model([image()])[0]
        after = model.prepare_inference()([image()])[0]
    assert set(model.state_dict()) != set(plain)
    close(after.scores, before.scores, rtol=1e-3, atol=1e-5)
    with pytest.raises(ValueError, match="float32"):
        model.prepare_inference(precision="bfloat16")


@pytest.mark.parametrize("name", SMALL)
def test_the_pyramid_is_loaded_from_imagenet_weights(tmp_path, name):
    from torchvision.models import resnet18

    source = resnet18(weights=None).state_dict()
    torch.save(source, tmp_path / "resnet18.pth")
    model = build_detector(config(name))
    load_weights(model, str(tmp_path / "resnet18.pth"))
    stem = model.backbone.bottom_up.stem.conv1.weight
    assert torch.equal(stem, source["conv1.weight"])
    with pytest.raises(CheckpointError, match="backbone only"):
        load_weights(model, str(tmp_path / "resnet18.pth"), detector=True)


@pytest.mark.parametrize("name", QUICK)
def test_another_number_of_classes_starts_the_class_layer_anew(models, tmp_path, name):
    save_checkpoint(tmp_path / "six.pth", {"model": models(name).state_dict()})
    model = build_detector(config(name, "MODEL.OneNet.NUM_CLASSES", "2"))
    before = {n: p.clone() for n, p in model.state_dict().items()}
    load_weights(model, str(tmp_path / "six.pth"), new_classes=True)
    fresh = [n for n, p in model.state_dict().items() if n.startswith(model.class_layers)]
    changed = [n for n, p in model.state_dict().items() if not torch.equal(p, before[n])]
    assert any("cls" in n or "classification" in n for n in fresh)
    assert all(n in changed for n in before if n.endswith("conv1.weight"))
    with pytest.raises(CheckpointError, match="another number of classes"):
        load_weights(model, str(tmp_path / "six.pth"))


@pytest.mark.parametrize(
    ("name", "opts", "told"),
    [
        ("torchvision.RetinaNet", ["MODEL.OneNet.NMS", "True"], "MODEL.TORCHVISION.NMS_THRESH"),
        ("torchvision.RetinaNet", ["MODEL.ANCHOR_GENERATOR.OFFSET", "0.5"], "OFFSET is 0.5"),
        ("torchvision.RetinaNet", ["MODEL.ANCHOR_GENERATOR.SIZES", "[[8], [16]]"], "the 5 levels"),
        ("torchvision.FCOS", ["MODEL.OneNet.IN_FEATURES", "['p3', 'p4']"], "all levels"),
        ("torchvision.SSDlite320", ["MODEL.BACKBONE.FREEZE_AT", "2"], "FREEZE_AT is 2"),
    ],
)
def test_what_a_peer_cannot_honour_is_refused(name, opts, told):
    with pytest.raises(ConfigError, match=told):
        build_detector(config(name, *opts))


def test_a_plain_backbone_is_no_pyramid():
    onenet = ROOT / "projects" / "OneNet" / "configs" / "onenet.res18.nodcn.yaml"
    cfg = load_cfg(onenet, ["MODEL.META_ARCHITECTURE", "torchvision.FCOS", "MODEL.WEIGHTS", ""])
    with pytest.raises(ConfigError, match="configs/baselines"):
        build_detector(cfg)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ConfigError, match="OneNet, CenterNet, .*torchvision.RetinaNet, .*'YOLO'"):
        build_detector(config("torchvision.FCOS", "MODEL.META_ARCHITECTURE", "YOLO"))


# From data to files: what every run has.


def changes(name: str) -> dict[str, object]:
    """The changes that make the tiny config this baseline's."""
    cfg = config(name) if name in FILES else load_cfg(BASELINES / "centernet.res18.nodcn.yaml")
    keys = (
        "MODEL.META_ARCHITECTURE MODEL.BACKBONE.NAME MODEL.RESNETS.OUT_FEATURES "
        "MODEL.FPN.IN_FEATURES MODEL.FPN.OUT_CHANNELS MODEL.ANCHOR_GENERATOR.SIZES "
        "MODEL.OneNet.IN_FEATURES"
    )
    found = {}
    for key in keys.split():
        value = cfg
        for part in key.split("."):
            value = value[part]
        found[key.replace(".", "__")] = value
    return found | {"SOLVER__MAX_ITER": 2, "SOLVER__IMS_PER_BATCH": 2}


@pytest.mark.parametrize("name", ["CenterNet", *QUICK])
def test_it_trains_evaluates_and_predicts(shapes, tmp_path, name):
    file = write_config(tmp_path, shapes, **changes(name))
    output = tmp_path / "run"
    assert set(train(file)) >= {"bbox/AP", "bbox/AP50"}
    losses = next(line for line in metrics(output) if "total_loss" in line)
    parts = [value for key, value in losses.items() if key.startswith("loss_")]
    assert losses["total_loss"] == pytest.approx(sum(parts)) and len(parts) > 1
    predictor = build_predictor(str(file), ["MODEL.WEIGHTS", str(output / "model_final.pth")])
    found = predictor(image(50, 70).permute(1, 2, 0).numpy())
    assert "class 0" not in predictor.class_names and found.boxes.shape[1] == 4
