"""From a config to what training adds: the start, class targets, the one-to-many branch."""

from __future__ import annotations

import pytest
import torch
from helpers.configs import CONFIGS

from onenet import ExclusiveMatcher, HungarianMatcher, OneToManyCriterion, TopKMatcher
from onenet.assignment.class_losses import FocalLoss, MatchabilityLoss, QualityFocalLoss
from onenet.assignment.one_to_many import Alignment, CentreRegion
from onenet.assignment.registry import build_aux_criterion, build_criterion, build_matcher
from onenet.errors import ConfigError
from onenet.lightning.build import build_detector
from onenet.lightning.config import load_cfg

R18, FCOS, RETINANET = (
    CONFIGS / f"onenet.{name}.yaml" for name in ("res18.nodcn", "fcos.res50", "retinanet.res50")
)


def config(path, **values):
    """A config with values of MODEL.OneNet; ``__`` stands for a dot."""
    pairs = ((f"MODEL.OneNet.{key.replace('__', '.')}", str(v)) for key, v in values.items())
    return load_cfg(path, [word for pair in pairs for word in pair])


def built(path, *, training=True, **values):
    with torch.device("meta"):
        return build_detector(config(path, **values), training=training)


@pytest.mark.parametrize("path", [R18, FCOS, RETINANET], ids=lambda path: path.name)
def test_without_the_keys_nothing_of_it_is_built(path):
    model = built(path)
    assert model.aux is model.aux_criterion is None and model.head.init == "xavier"
    assert type(model.criterion.class_loss) is FocalLoss
    assert built(path, training=False, AUX__ENABLED=True).aux is None


@pytest.mark.parametrize("path", [R18, FCOS, RETINANET], ids=lambda path: path.name)
def test_the_branch_has_the_heads_sizes_and_its_own_keys(path):
    model = built(
        path,
        INIT="calm",
        AUX__ENABLED=True,
        AUX__SHARE_BOXES=False,
        AUX__DETACH=True,
        AUX__MAIN_GRADIENT=0.5,
    )
    branch, head = model.aux, model.head
    assert branch.detach and branch.main_gradient == 0.5
    assert branch.cls_score.weight.shape == head.cls_score.weight.shape
    box_layer = head.bbox_pred if path == RETINANET else head.ltrb_pred
    assert branch.box_pred.weight.shape == box_layer.weight.shape
    assert built(path, AUX__ENABLED=True).aux.box_pred is None


def test_the_branchs_criterion_has_its_keys():
    criterion = build_aux_criterion(
        config(R18, AUX__WEIGHT=0.5, AUX__FALL="[0.25, 1.0]", L1_WEIGHT=7.0, ALPHA=0.5)
    )
    assert type(criterion) is OneToManyCriterion and criterion.weights["loss_bbox"] == 7.0
    assert criterion.weight == 0.5 and criterion.fall == (0.25, 1.0)
    assert criterion.class_loss.alpha == 0.5
    soft = build_aux_criterion(config(R18, AUX__CLASS_TARGET="soft", GAMMA=1.0))
    assert type(soft.class_loss) is QualityFocalLoss and soft.class_loss.gamma == 1.0


def test_the_class_target_has_its_keys():
    loss = build_criterion(config(R18, CLASS_TARGET="iou", TARGET_RAMP=0.5)).class_loss
    assert type(loss) is MatchabilityLoss and (loss.gamma, loss.ramp) == (1.5, 0.5)


def matcher_of(path, name, **values):
    return build_aux_criterion(config(path, AUX__MATCHER=name, **values)).matcher


def test_alignment_has_its_keys():
    match = matcher_of(R18, "alignment", AUX__TOPK=5, AUX__ALPHA=1.0, AUX__BETA=6.0)
    assert type(match) is ExclusiveMatcher and match.topk == 5 and match.class_weight == 0
    assert type(match.location) is Alignment
    assert (match.location.class_power, match.location.iou_power) == (1.0, 6.0)
    default = matcher_of(R18, "alignment")
    assert default.topk == 8
    assert (default.location.class_power, default.location.iou_power) == (0.5, 3.0)


def test_topk_has_onenets_own_cost():
    match = matcher_of(R18, "topk", AUX__TOPK=4, CLASS_COST=3.0, L1_COST=7.0)
    assert type(match) is TopKMatcher and match.topk == 4
    assert match.class_weight == 3.0 and match.location.l1_weight == 7.0


@pytest.mark.parametrize("path", [R18, FCOS, RETINANET], ids=lambda path: path.name)
def test_points_have_the_sizes_of_the_levels_if_there_are_several(path):
    match = matcher_of(path, "points", AUX__RADIUS=2.0)
    assert type(match) is ExclusiveMatcher and match.topk is None
    assert type(match.location) is CentreRegion and match.location.radius == 2.0
    assert (match.location.level_sizes is None) == (path == R18)


def test_points_need_sizes_for_every_level():
    with pytest.raises(ConfigError, match="OBJECT_SIZES_OF_INTEREST must hold a range for each"):
        matcher_of(FCOS, "points", OBJECT_SIZES_OF_INTEREST="[[-1, 64]]")


def test_poto_is_a_matcher_of_onenets_own():
    match = build_matcher(config(R18, MATCHER="poto"))
    assert type(match) is HungarianMatcher and match.class_weight == 0
    quality = match.location
    assert (quality.class_power, quality.iou_power, quality.outside) == (0.2, 0.8, 0.0)
