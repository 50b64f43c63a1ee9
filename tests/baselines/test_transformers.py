"""The library transformers' detectors: the same images, targets and detections as OneNet."""

from __future__ import annotations

import copy
import math
import sys
from contextlib import nullcontext
from dataclasses import replace
from functools import lru_cache
from unittest.mock import patch

import pytest
import torch
from helpers.configs import ROOT
from helpers.runs import metrics, train, write_config
from torch.nn.functional import log_softmax

from onenet.assignment.registry import build_criterion
from onenet.backbones.resnet import ResNet
from onenet.baselines.registry import BASELINE_REGISTRY
from onenet.baselines.transformers import best_class
from onenet.baselines.transformers_config import ARCHITECTURES
from onenet.config.build import prepare_inference
from onenet.errors import ConfigError
from onenet.lightning.build import build_detector
from onenet.lightning.config import dump, load_cfg
from onenet.lightning.predictor import build_predictor
from onenet.structures import TargetBatch, Targets

transformers = pytest.importorskip("transformers")

close = torch.testing.assert_close
BASELINES = ROOT / "configs" / "baselines"
BUILD = "onenet.baselines.transformers.build_backbone"
FILES = {
    "transformers.Detr": "detr.res50.yaml",
    "transformers.DeformableDetr": "deformable_detr.res50.yaml",
    "transformers.RTDetr": "rtdetr.res50.yaml",
}
THIN = [
    "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.OneNet.NUM_CLASSES", "6",
    "MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64",
]  # fmt: skip
_COMMON = {"decoder_ffn_dim": 32, "decoder_layers": 2, "num_queries": 8}
_ENCODER = {
    **_COMMON, "encoder_layers": 1, "encoder_ffn_dim": 32, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
}  # fmt: skip
_PLAIN = {**_ENCODER, "d_model": 32}
_REAL_TIME = {
    **_PLAIN, "encoder_hidden_dim": 32, "decoder_in_channels": [32, 32, 32], "num_denoising": 4,
}  # fmt: skip
_PARTS = {
    **_COMMON, "d_model": 32, "decoder_self_attention_heads": 2,
    "decoder_cross_attention_heads": 2, "group_detr": 2,
}  # fmt: skip
_VIT = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 64}
TINY = {
    "Detr": _PLAIN,
    "ConditionalDetr": _PLAIN,
    "DabDetr": {**_ENCODER, "hidden_size": 32},
    "DeformableDetr": {**_PLAIN, "d_model": 64},  # its norms have 32 groups
    "RTDetr": _REAL_TIME,
    "RTDetrV2": _REAL_TIME,
    "DFine": _REAL_TIME,
    "Deimv2": _REAL_TIME,
    "LwDetr": {
        **_PARTS,
        "projector_scale_factors": [1.0],
        "backbone_config": {
            **_VIT, "model_type": "lw_detr_vit", "window_block_indices": [0, 1],
            "out_indices": [2, 4], "num_windows": 4,
        },
    },
    "RfDetr": {
        **_PARTS,
        "backbone_config": {
            **_VIT, "model_type": "rf_detr_dinov2", "patch_size": 16, "num_windows": 2,
            "num_register_tokens": 0, "out_features": ["stage2", "stage4"],
        },
    },
}  # fmt: skip


def config(name: str, *opts: str):
    """A tiny network of an architecture, with a ResNet-18 of ours where it takes one."""
    kind = ARCHITECTURES[name]
    words = [*THIN, "MODEL.META_ARCHITECTURE", f"transformers.{name}"]
    for key, value in TINY[name].items():
        words += [f"MODEL.TRANSFORMERS.CONFIG.{key}", value]
    if not kind.maps:
        words += ["MODEL.TRANSFORMERS.OWN_BACKBONE", "True", "MODEL.TRANSFORMERS.SIZE", "64"]
    features = ["res5"] if kind.maps == (1,) else ["res3", "res4", "res5"]
    return load_cfg(
        BASELINES / "detr.res50.yaml", [*words, "MODEL.OneNet.IN_FEATURES", str(features), *opts]
    )


@lru_cache
def shared_backbone():
    return ResNet(depth=18, norm="FrozenBN", freeze_at=2)


def build(name: str, *opts: str):
    """A detector; all of them share a backbone, which takes the longest to make."""
    torch.manual_seed(0)
    timm = "MODEL.TIMM.NAME" in opts
    with nullcontext() if timm else patch(BUILD, lambda _: shared_backbone()):
        return build_detector(config(name, *opts))


@pytest.fixture(scope="module")
def models():
    """One of each architecture, by its name, made when it is first asked for."""
    made = {}

    def get(name):
        return made.setdefault(name, made.get(name) or build(name))

    return get


def image(height=64, width=96, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


def targets(*boxes, labels=None, size=(64, 96)):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    labels = [0] * len(boxes) if labels is None else labels
    return Targets(boxes, torch.tensor(labels, dtype=torch.int64), size)


PAIR = [image(), image(64, 64, 1)]
TRUTH = [
    targets([8, 8, 60, 40], [50, 10, 90, 60], labels=[0, 5]),
    targets(size=(64, 64)),
]


def test_every_architecture_is_registered_and_some_have_a_file():
    names = {name for name, _ in BASELINE_REGISTRY if name.startswith("transformers.")}
    assert names == {f"transformers.{name}" for name in TINY} and set(FILES) <= names
    for name, file in FILES.items():
        cfg = load_cfg(BASELINES / file)
        assert cfg.MODEL.META_ARCHITECTURE == name and cfg.MODEL.TRANSFORMERS.CONFIG == {}


@pytest.mark.parametrize("name", TINY)
def test_losses_are_the_librarys(models, name):
    """Their sum is the library's loss, and every parameter learns from it."""
    model = models(name).train()
    totals = []
    library = model._library_loss
    model._library_loss = lambda *args, **more: totals.append(library(*args, **more)) or totals[-1]
    try:
        losses = model(PAIR, TRUTH)
    finally:
        model._library_loss = library
    assert {"loss_bbox", "loss_giou"} < set(losses) and len(losses) <= 5
    close(sum(losses.values()), totals[0][0])
    sum(losses.values()).backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []  # or else several processes would wait for each other
    model.zero_grad()


@pytest.mark.parametrize("name", ["Detr", "DeformableDetr", "RTDetr", "RfDetr"])
def test_no_objects_and_boxes_without_area_are_background(models, name):
    model = models(name).train()
    nothing = [targets(), targets(size=(64, 64))]
    flat = [targets([8, 8, 8, 40], [30, 9, 20, 5]), nothing[1]]
    totals = []
    for truth in (nothing, flat):
        torch.manual_seed(0)  # for dropout
        losses = model(PAIR, truth)
        totals.append(sum(losses.values()))
        assert losses["loss_bbox"].item() == 0
    close(*totals)
    totals[0].backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    model.zero_grad()


@pytest.mark.parametrize("name", ["Detr", "DabDetr", "DeformableDetr", "RTDetr", "RfDetr"])
def test_an_image_is_the_same_alone_and_beside_others(models, name):
    model = models(name).eval()
    images = [image(), image(64, 80, 1)]
    with torch.inference_mode():
        found = model(images)
        together, alone = model.predict(images), model.predict(images[1:])
    close(together.logits[1:], alone.logits, atol=1e-4, rtol=1e-3)
    close(together.boxes[1:], alone.boxes, atol=1e-2, rtol=1e-3)
    for one in found:
        assert len(one) == (8 if name == "Detr" else 48)
        assert (one.scores.diff() <= 0).all() and one.scores.min() > 0
        assert set(one.labels.tolist()) <= set(range(6))


def test_the_network_reads_where_an_image_ends(models):
    model = models("Detr").eval()
    seen = []
    hook = model.head.register_forward_pre_hook(
        lambda _, __, options: seen.append(options["pixel_mask"]), with_kwargs=True
    )
    with torch.inference_mode():
        model.predict([image(40, 90), image(64, 70)])
    hook.remove()
    expected = torch.zeros(2, 64, 96, dtype=torch.int64)
    expected[0, :40, :90] = expected[1, :64, :70] = 1
    assert torch.equal(seen[0], expected)


def post_process(name, model, picture, **options):
    processor = getattr(transformers, f"{name}ImageProcessor")()
    with torch.inference_mode():
        pixels = (picture - model.pixel_mean) / model.pixel_std
        maps = model.features(pixels[None])
        for stand_in in model._stand_ins:
            stand_in.maps = maps
        raw = model.head(pixel_values=pixels[None])
        return processor.post_process_object_detection(
            raw, threshold=0.0, target_sizes=[tuple(picture.shape[-2:])], **options
        )[0]


@pytest.mark.parametrize("name", ["Detr", "ConditionalDetr", "DeformableDetr", "RTDetr"])
def test_detections_are_the_librarys(models, name):
    model, picture = models(name).eval(), image()
    top_k = {"top_k": 48} if name in ("ConditionalDetr", "DeformableDetr") else {}
    theirs = post_process(name, model, picture, **top_k)
    with torch.inference_mode():
        (ours,) = model([picture])
    scores, order = theirs["scores"].sort(descending=True)
    count = min(len(ours), len(scores))
    close(ours.scores[:count], scores[:count])
    close(ours.labels[:3], theirs["labels"][order][:3])
    close(ours.boxes[:3], theirs["boxes"][order][:3], atol=0.05, rtol=0)


def test_the_best_class_has_its_softmax():
    logits = torch.tensor([[[1.0, 3.0, 2.0], [40.0, -40.0, 0.0]]])
    found = best_class(logits)
    assert found[0, 0, 0] == found[0, 1, 1] == -math.inf
    close(found[0, 0, 1].sigmoid(), log_softmax(logits[0, 0], dim=0)[1].exp())
    close(found[0, 1, 0], torch.tensor(40.0))  # not infinite, though its softmax is 1


@pytest.mark.parametrize("name", ["Detr", "RTDetr"])
def test_one_class(name):
    model = build(name, "MODEL.OneNet.NUM_CLASSES", "1")
    losses = model.train()(PAIR, [targets([8, 8, 60, 40]), TRUTH[1]])
    assert all(loss.isfinite() for loss in losses.values())
    with torch.inference_mode():
        (found,) = model.eval()([image()])
    assert len(found) == 8 and not found.labels.any()


def test_images_become_squares_if_asked():
    """The network sees a square; boxes are in px of the image as it was."""
    model = build("RTDetr", "MODEL.TRANSFORMERS.SIZE", "64").eval()
    batch, sizes = model.inputs([image(40, 90)])
    assert batch.shape == (1, 3, 64, 64) and sizes.tolist() == [[40, 90]]
    with torch.inference_mode():
        parts = model._run(batch, sizes).pred_boxes
        boxes = model.network(batch, sizes).boxes
    close(boxes[..., 2:] - boxes[..., :2], parts[..., 2:] * torch.tensor([90.0, 40.0]))
    (labels,) = model._labels(*model.inputs([image(40, 90)]), batch_of(targets([9, 4, 45, 20])))
    close(labels["boxes"], torch.tensor([[0.3, 0.3, 0.4, 0.4]]))


def batch_of(*truth):
    return TargetBatch.of(truth, torch.device("cpu"))


# OneNet's criterion.


@pytest.mark.parametrize("name", ["ConditionalDetr", "DabDetr", "DeformableDetr"])
def test_onenets_criterion_trains_every_decoder_layer(name):
    model = build(name, "MODEL.TRANSFORMERS.LOSS", "OneNet", "MODEL.OneNet.MATCHER", "hungarian")
    model.eval()  # no dropout
    ready = batch_of(*TRUTH)
    layers = model.stages(*model.inputs(PAIR))
    assert [layer.logits.shape for layer in layers] == [(2, 8, 6)] * 2
    losses = model.losses(*model.inputs(PAIR), ready)
    for layer, ending in zip(layers, ("", "_2"), strict=True):
        for term, value in model.criterion(layer, ready).items():
            close(losses[term + ending], value)
    with torch.inference_mode():
        last = model.predict(PAIR)
    close(last.logits, layers[-1].logits)
    close(last.boxes, layers[-1].boxes)
    assert last.samples.shape == (8, 4)
    # As OneNet's heads start, MODEL.OneNet.PRIOR_PROB.
    assert last.logits.sigmoid().mean() == pytest.approx(0.01, rel=0.5)
    sum(model.train()(PAIR, TRUTH).values()).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_the_class_cost_changes_what_a_query_is_assigned(models):
    """The keys of the ablation reach the matcher; places alone cannot choose a query."""
    opts = ["MODEL.TRANSFORMERS.LOSS", "OneNet", "MODEL.OneNet.MATCHER", "hungarian"]

    def matched(cost, found):
        matcher = build_criterion(config("DabDetr", *opts, "MODEL.OneNet.CLASS_COST", cost)).matcher
        return matcher(found, batch_of(*TRUTH)).sample.tolist()

    with torch.inference_mode():
        found = models("DabDetr").eval().predict(PAIR)
    by_place = matched("0.0", found)
    sure = [query for query in range(8) if query not in by_place][:2]
    logits = torch.full_like(found.logits, -5.0)
    logits[0, sure, [0, 5]] = 5.0  # of each object's label, wherever the query's box is
    found = replace(found, logits=logits)
    assert matched("0.0", found) == by_place and matched("1000.0", found) == sure
    with pytest.raises(ConfigError, match="LOCATION_COST is 'predefined'.*queries"):
        build("DeformableDetr", *opts, "MODEL.OneNet.LOCATION_COST", "predefined")


# What a config may say.


@pytest.mark.parametrize(
    ("name", "opts", "told"),
    [
        ("Detr", ["CONFIG.num_querys", "5"], "CONFIG.num_querys .*DetrConfig.*'num_queries'"),
        ("Detr", ["CONFIG.class_cost", "2.0"], "'class_cost' expected int, got float"),
        ("Detr", ["CONFIG.activation_function", "nope"], "does not fit DetrFor.*: 'nope'"),
        ("Detr", ["CONFIG.encoder_attention_heads", "3"], "is 3; expected a divisor of 32"),
        ("Detr", ["LOSS", "OneNet"], "LOSS is 'OneNet'; expected 'library'.*DeformableDetr"),
        ("RfDetr", ["OWN_BACKBONE", "False"], "OWN_BACKBONE is False; expected True"),
        ("RfDetr", ["SIZE", "0"], "SIZE is 0; expected the side of a square"),
    ],
)
def test_what_the_library_cannot_build_is_refused(name, opts, told):
    with pytest.raises(ConfigError, match=told):
        build(name, f"MODEL.TRANSFORMERS.{opts[0]}", opts[1])


@pytest.mark.parametrize(
    ("opts", "told"),
    [
        (["MODEL.OneNet.IN_FEATURES", "['res4', 'res5']"], "expected 1 of the backbone's maps"),
        (["MODEL.TRANSFORMERS.LOSS", "theirs"], "LOSS is 'theirs'; expected one of 'library'"),
        (
            ["SOLVER.ACCUMULATE", "2"],
            "expected 1 for the detectors of transformers",
        ),
        (
            ["MODEL.TRANSFORMERS.OWN_BACKBONE", "True", "MODEL.WEIGHTS", "torchvision://resnet18"],
            "MODEL.WEIGHTS is 'torchvision://resnet18'; expected ''",
        ),
    ],
)
def test_other_keys_that_do_not_fit_are_refused(opts, told):
    with pytest.raises(ConfigError, match=told):
        build("Detr", *opts)


def test_too_small_an_image_for_the_queries_is_told():
    model = build("RTDetr", "MODEL.TRANSFORMERS.CONFIG.num_queries", "30").eval()
    with torch.inference_mode(), pytest.raises(ConfigError, match="num_queries is 30.* 32 x 32 px"):
        model([image(32, 32)])


def test_any_field_of_the_library_has_a_key(tmp_path):
    """In a file or on the command line, within each other, and back from a run's config."""
    file = tmp_path / "c.yaml"
    file.write_text(
        f"_BASE_: '{BASELINES / 'detr.res50.yaml'}'\n"
        "MODEL: {TRANSFORMERS: {CONFIG: {init_std: 1e-2, backbone_config: {model_type: resnet}}}}"
    )
    key = "MODEL.TRANSFORMERS.CONFIG"
    opts = [f"{key}.backbone_config.depths", "[1, 2]", f"{key}.init_std", "0.5"]
    cfg = load_cfg(file, [*opts, f"{key}.position_embedding_type", "sine"])
    expected = {
        "init_std": 0.5,
        "backbone_config": {"model_type": "resnet", "depths": [1, 2]},
        "position_embedding_type": "sine",
    }
    assert cfg.MODEL.TRANSFORMERS.CONFIG == expected
    file.write_text(dump(cfg))
    assert load_cfg(file).MODEL.TRANSFORMERS == cfg.MODEL.TRANSFORMERS
    with pytest.raises(ConfigError, match="CONFIG is a section, but its value is '5'"):
        load_cfg(file, [key, "5"])


@pytest.mark.parametrize("name", ["Detr", "RTDetr"])
def test_folded_batch_norms_change_nothing(name):
    model = build(name).eval()
    with torch.inference_mode():
        before = model([image()])[0]
        after = prepare_inference(config(name), copy.deepcopy(model))([image()])[0]
    close(after.scores, before.scores, atol=1e-4, rtol=1e-3)
    close(after.boxes, before.boxes, atol=0.05, rtol=0)


def test_without_transformers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"pip install 'onenet\[transformers\]'"):
        build("Detr")


def test_a_backbone_of_timm():
    pytest.importorskip("timm")
    opts = ["MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", "resnet10t"]
    model = build("Detr", *opts, "MODEL.BACKBONE.FREEZE_AT", "0")
    assert "backbone.net.conv1.0.weight" in model.state_dict()
    assert all(loss.isfinite() for loss in model.train()(PAIR, TRUTH).values())


# From data to files: what every run has.


@pytest.mark.parametrize(
    ("name", "opts"),
    [
        ("Detr", {"SOLVER__AMP__ENABLED": True, "TEST__LOSS": True}),
        pytest.param(
            "DeformableDetr", {"MODEL__TRANSFORMERS__LOSS": "OneNet"}, marks=pytest.mark.slow
        ),
        pytest.param("RTDetr", {"MODEL__TRANSFORMERS__SIZE": 64}, marks=pytest.mark.slow),
    ],
)
def test_it_trains_evaluates_and_predicts(shapes, tmp_path, name, opts):
    changes = {f"MODEL__TRANSFORMERS__CONFIG__{k}": v for k, v in TINY[name].items()}
    changes |= {"MODEL__META_ARCHITECTURE": f"transformers.{name}", **opts}
    changes["MODEL__OneNet__IN_FEATURES"] = list(config(name).MODEL.OneNet.IN_FEATURES)
    changes |= {"SOLVER__MAX_ITER": 2, "SOLVER__IMS_PER_BATCH": 2}
    file = write_config(tmp_path, shapes, **changes)
    output = tmp_path / "run"
    found = train(file)
    assert set(found) >= {"bbox/AP", "bbox/AP50"}
    losses = next(line for line in metrics(output) if "total_loss" in line)
    parts = [value for key, value in losses.items() if key.startswith("loss_")]
    assert losses["total_loss"] == pytest.approx(sum(parts), rel=1e-4) and len(parts) > 2
    predictor = build_predictor(str(file), ["MODEL.WEIGHTS", str(output / "model_final.pth")])
    seen = predictor(image(50, 70).permute(1, 2, 0).numpy())
    assert predictor.class_names[0] == "circle" and seen.boxes.shape[1] == 4
