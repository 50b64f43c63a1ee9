"""The library transformers' detectors: the same images, targets and detections as OneNet."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from helpers.detrs import PAIR, TINY, TRUTH, build, config, image, targets
from helpers.runs import metrics, train, write_config
from torch.nn.functional import log_softmax

from onenet.assignment.registry import build_criterion
from onenet.baselines.transformers import best_class
from onenet.config.build import prepare_inference
from onenet.errors import ConfigError
from onenet.lightning.predictor import build_predictor
from onenet.structures import TargetBatch

transformers = pytest.importorskip("transformers")

close = torch.testing.assert_close


@pytest.fixture(scope="module")
def models():
    """One of each architecture, by its name, made when it is first asked for."""
    made = {}

    def get(name):
        return made.setdefault(name, made.get(name) or build(name))

    return get


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


@pytest.mark.parametrize("name", ["Detr", "RTDetr"])
def test_folded_batch_norms_change_nothing(name):
    model = build(name).eval()
    with torch.inference_mode():
        before = model([image()])[0]
        after = prepare_inference(config(name), copy.deepcopy(model))([image()])[0]
    close(after.scores, before.scores, atol=1e-4, rtol=1e-3)
    close(after.boxes, before.boxes, atol=0.05, rtol=0)


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
