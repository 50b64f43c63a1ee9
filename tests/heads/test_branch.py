"""The start of the class layer, and the one-to-many branch of every head."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.configs import QUICK
from helpers.heads import centernet, fcos, maps_for, retinanet
from helpers.small_detector import image, model, targets
from torch import nn

from onenet import Criterion, Head, MinCostMatcher
from onenet.assignment.costs import PredictedLocation
from onenet.assignment.criterion import OneToManyCriterion
from onenet.assignment.one_to_many import Alignment, ExclusiveMatcher
from onenet.inference.optimize import prepare
from onenet.lightning.build import build_detector
from onenet.lightning.config import load_cfg

close = torch.testing.assert_close
HEADS = {"centernet": centernet, "fcos": fcos, "retinanet": retinanet}
BCCD = QUICK / "onenet.res18.bccd.yaml"
LAYERS = ["feat.weight", "feat.bias", "cls_score.weight", "cls_score.bias"]
NAMES = ["loss_ce", "loss_giou", "loss_bbox"]


def with_branch(name, **options):
    torch.manual_seed(0)
    head = HEADS[name](init="calm").train()
    box_layer = head.bbox_pred if name == "retinanet" else head.ltrb_pred
    nn.init.constant_(box_layer.bias, 1.0)
    return head, head.make_branch(**options), box_layer


def shared_layers(head):
    """Layers that the branch reads the output of."""
    return head.deconv if hasattr(head, "deconv") else head.cls_conv_module


@pytest.mark.parametrize("name", HEADS)
def test_a_calm_start_changes_the_class_layers_weights_alone(name):
    states = {}
    for init in ("xavier", "calm"):
        torch.manual_seed(0)
        states[init] = HEADS[name](init=init, num_classes=20).state_dict()
    xavier, calm = states.values()
    changed = [key for key in calm if not torch.equal(calm[key], xavier[key])]
    assert changed == ["cls_score.weight"]
    weight = calm["cls_score.weight"]
    assert weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert weight.mean().abs() < 3 * 0.01 / math.sqrt(weight.numel())
    close(calm["cls_score.bias"], torch.full_like(calm["cls_score.bias"], -math.log(99)))


@pytest.mark.parametrize("name", HEADS)
def test_an_unknown_start_is_refused(name):
    with pytest.raises(ValueError, match="init must be one of xavier, calm, got 'orthogonal'"):
        HEADS[name](init="orthogonal")


def test_with_a_calm_start_the_first_class_loss_does_not_depend_on_the_seed():
    """ResNet-18 from scratch, on noise; with Xavier's start some seeds are far off."""
    images, goals = [image(64, 64), image(64, 64, 1)], [targets([2, 2, 20, 30], size=(64, 64))] * 2
    far = {}
    for init in ("xavier", "calm"):
        cfg = load_cfg(BCCD, ["MODEL.OneNet.INIT", init])
        losses = []
        for seed in range(8):
            torch.manual_seed(seed)
            with torch.no_grad():
                losses.append(build_detector(cfg).train()(images, goals)["loss_ce"].item())
        far[init] = max(losses) / min(losses)
    assert far["calm"] < 1.5 and far["xavier"] > 3


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("share", [True, False])
def test_the_branch_predicts_for_the_same_samples(name, share):
    head, branch, box_layer = with_branch(name, share_boxes=share)
    maps = maps_for(head)
    outputs = head.outputs(maps, branch)
    assert list(outputs) == ["main", "aux"]
    main, aux = outputs.values()
    for field in ("logits", "boxes"):
        assert getattr(aux, field).shape == getattr(main, field).shape
    assert torch.equal(aux.samples, main.samples) and torch.equal(aux.levels, main.levels)
    assert not torch.equal(aux.logits, main.logits)
    assert [*branch.state_dict()] == LAYERS + ["box_pred.weight", "box_pred.bias"] * (not share)
    assert (branch.boxes(box_layer) is box_layer) == share


@pytest.mark.parametrize("name", HEADS)
def test_the_heads_own_predictions_are_those_without_a_branch(name):
    head, branch, _ = with_branch(name)
    head.eval()
    maps = maps_for(head)
    alone, beside = head(maps), head.outputs(maps, branch)["main"]
    assert torch.equal(alone.logits, beside.logits) and torch.equal(alone.boxes, beside.boxes)
    (only,) = head.outputs(maps).values()
    assert torch.equal(only.logits, alone.logits)


@pytest.mark.parametrize("name", HEADS)
def test_building_a_branch_draws_nothing_that_the_head_depends_on(name):
    torch.manual_seed(3)
    plain = HEADS[name]().state_dict()
    torch.manual_seed(3)
    head = HEADS[name]()
    head.make_branch(share_boxes=False)
    for key, value in head.state_dict().items():
        assert torch.equal(value, plain[key])


def reached(loss, parameters):
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return [gradient is not None and bool(gradient.any()) for gradient in found]


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("detach", [True, False])
def test_the_branch_trains_what_it_shares_unless_it_is_detached(name, share, detach):
    head, branch, box_layer = with_branch(name, share_boxes=share, detach=detach)
    aux = head.outputs(maps_for(head), branch)["aux"]
    shared = next(shared_layers(head).parameters())
    own = [branch.cls_score.weight, branch.feat.weight, shared, head.cls_score.weight]
    assert reached(aux.logits.sum(), own) == [True, True, not detach, False]
    assert reached(aux.boxes[..., 2].sum(), [box_layer.weight]) == [share]
    if not share:
        assert reached(aux.boxes[..., 2].sum(), [branch.box_pred.weight]) == [True]


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_share_of_the_heads_gradient_trains_what_it_shares(name, share):
    head, branch, _ = with_branch(name, main_gradient=share)
    maps = maps_for(head)
    layers = [*shared_layers(head).parameters()]
    head.eval()  # no statistics that change from one pass to the next

    def gradients(logits):
        found = torch.autograd.grad(logits.float().sum(), layers, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(layers, found, strict=True)]

    expected = [share * gradient for gradient in gradients(head(maps).logits)]
    main = head.outputs(maps, branch)["main"]
    if share == 0:
        assert not reached(main.logits.sum(), layers[:1])[0]
    else:
        close(gradients(main.logits), expected, rtol=1e-3, atol=1e-4)
    close(main.logits, head(maps).logits)


def test_further_stages_have_a_branch_too():
    head = centernet(num_stages=3)
    assert list(head.outputs(maps_for(head), head.make_branch())) == [
        "main", "stage_2", "stage_3", "aux",
    ]  # fmt: skip


class Own(Head):
    """A user's head that knows no branch."""

    def forward(self, features):
        raise NotImplementedError


def test_a_head_of_ones_own_has_no_branch():
    with pytest.raises(NotImplementedError, match="Own has no one-to-many branch"):
        Own(num_classes=2).make_branch()


def detector(**changes):
    tiny = model()
    matcher = MinCostMatcher(location=PredictedLocation())
    tiny.aux = tiny.head.make_branch()
    tiny.aux_criterion = OneToManyCriterion(matcher=matcher, **changes)
    return tiny


def test_the_branchs_losses_have_names_of_their_own():
    tiny = detector(weight=0.5).train()
    images, goals = [image(32, 40), image(32, 40, 1)], [targets([2, 2, 20, 30]), targets()]
    losses = tiny(images, goals)
    assert list(losses) == [*NAMES, *(f"{name}_aux" for name in NAMES)]
    tiny = detector(weight=0.5).train()
    maps = tiny.features(tiny.batch(images))
    aux = tiny.head.outputs(maps, tiny.aux)["aux"]
    expected = Criterion(matcher=tiny.aux_criterion.matcher)(aux, goals)
    for name in NAMES:  # one positive, one target
        close(losses[f"{name}_aux"], 0.5 * expected[name])


def test_the_losses_of_the_deployed_part_do_not_depend_on_the_branch():
    images, goals = [image(32, 40)], [targets([2, 2, 20, 30])]
    alone, beside = model().train()(images, goals), detector().train()(images, goals)
    for name in NAMES:
        assert torch.equal(alone[name], beside[name])


@pytest.mark.parametrize("share", [True, False])
def test_every_layer_has_a_gradient_even_without_targets(share):
    """As several processes need it."""
    tiny = model().train()
    tiny.aux = tiny.head.make_branch(share_boxes=share)
    quality = Alignment(class_power=0.5, iou_power=3.0)
    matcher = ExclusiveMatcher(location=quality, class_weight=0.0, topk=8)
    tiny.aux_criterion = OneToManyCriterion(matcher=matcher)
    sum(tiny([image(32, 40)], [targets()]).values()).backward()
    assert all(parameter.grad is not None for parameter in tiny.parameters())


def test_a_prepared_model_has_no_branch():
    tiny = detector().eval()
    images = [image(32, 40)]
    with torch.no_grad():
        expected = tiny(images)[0]
        found = prepare(tiny, fuse=False)(images)[0]
    assert torch.equal(found.scores, expected.scores)
    assert tiny.aux is None and not any(name.startswith("aux") for name in tiny.state_dict())
