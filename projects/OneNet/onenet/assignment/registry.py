"""What ``MODEL.OneNet.MATCHER``, ``LOCATION_COST`` and ``CRITERION`` can name.

Every entry is called with the config and reads its own keys. One of your own needs no change here::

    @MATCHER_REGISTRY.register()
    def my_rule(cfg):  # MODEL.OneNet.MATCHER "my_rule"
        return MyMatcher(**matcher_options(cfg))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fvcore.common.registry import Registry
from torch import nn

from onenet.errors import ConfigError, look_up

from .class_losses import MatchabilityLoss, QualityFocalLoss
from .costs import PredefinedAnchor, PredefinedPoint, PredictedLocation
from .criterion import Criterion, OneToManyCriterion
from .matchers import HungarianMatcher, Matcher, MinCostMatcher
from .one_to_many import Alignment, CentreRegion, ExclusiveMatcher, TopKMatcher
from .zoo import AdaptiveThreshold, AnchorOverlap, DynamicTopK, NearestCentre, ThresholdMatcher

# ``cfg -> Criterion``, or another module ``(predictions, targets) -> losses by name``.
CRITERION_REGISTRY = Registry("ONENET_CRITERION")
# ``cfg -> Matcher``.
MATCHER_REGISTRY = Registry("ONENET_MATCHER")
# ``cfg -> location cost``, see onenet.assignment.costs.
LOCATION_COST_REGISTRY = Registry("ONENET_LOCATION_COST")
# What LOCATION_COST "predefined" means for a head, by the head's name: ``cfg -> location cost``.
PREDEFINED_COSTS: dict[str, Callable[[Any], nn.Module]] = {}


def build_criterion(cfg: Any) -> nn.Module:
    """The criterion that ``MODEL.OneNet.CRITERION`` names, with its matcher.

    Raises:
        ConfigError: an unknown name, or values that do not fit each other.
    """
    return look_up(CRITERION_REGISTRY, "MODEL.OneNet.CRITERION", cfg.MODEL.OneNet.CRITERION)(cfg)


def build_aux_criterion(cfg: Any) -> nn.Module:
    """The criterion of the one-to-many branch, with the matcher that ``AUX.MATCHER`` names.

    Raises:
        ConfigError: see :func:`build_criterion`.
    """
    c = cfg.MODEL.OneNet
    soft = c.AUX.CLASS_TARGET == "soft"
    return OneToManyCriterion(
        **_loss_options(cfg),
        matcher=look_up(MATCHER_REGISTRY, "MODEL.OneNet.AUX.MATCHER", c.AUX.MATCHER)(cfg),
        class_loss=QualityFocalLoss(c.GAMMA) if soft else None,
        weight=c.AUX.WEIGHT,
        fall=c.AUX.FALL,
    )


def build_matcher(cfg: Any) -> Matcher:
    """The matcher that ``MODEL.OneNet.MATCHER`` names, with its location cost.

    Raises:
        ConfigError: see :func:`build_criterion`.
    """
    return look_up(MATCHER_REGISTRY, "MODEL.OneNet.MATCHER", cfg.MODEL.OneNet.MATCHER)(cfg)


def build_location_cost(cfg: Any) -> nn.Module:
    """The cost that ``MODEL.OneNet.LOCATION_COST`` names.

    Raises:
        ConfigError: see :func:`build_criterion`.
    """
    name = cfg.MODEL.OneNet.LOCATION_COST
    return look_up(LOCATION_COST_REGISTRY, "MODEL.OneNet.LOCATION_COST", name)(cfg)


def matcher_options(cfg: Any) -> dict[str, Any]:
    """The arguments of every :class:`~onenet.assignment.matchers.Matcher`, by name.

    Raises:
        ConfigError: see :func:`build_criterion`.
    """
    c = cfg.MODEL.OneNet
    if not (c.CLASS_COST or c.L1_COST or c.GIOU_COST):
        raise ConfigError("MODEL.OneNet: CLASS_COST, L1_COST and GIOU_COST cannot all be 0")
    return {
        "location": build_location_cost(cfg),
        "class_weight": c.CLASS_COST,
        "alpha": c.ALPHA,
        "gamma": c.GAMMA,
    }


@CRITERION_REGISTRY.register()
def OneNet(cfg: Any) -> Criterion:
    """The losses of the paper: focal, L1 and GIoU of the samples that a matcher chooses."""
    c = cfg.MODEL.OneNet
    graded = c.CLASS_TARGET == "iou"
    matcher = build_matcher(cfg)
    return Criterion(
        **_loss_options(cfg),
        matcher=matcher,
        class_loss=MatchabilityLoss(c.TARGET_GAMMA, c.TARGET_RAMP) if graded else None,
        per_positive=matcher.one_to_many,
    )


def _loss_options(cfg: Any) -> dict[str, float]:
    c = cfg.MODEL.OneNet
    return {
        "class_weight": c.CLASS_WEIGHT,
        "l1_weight": c.L1_WEIGHT,
        "giou_weight": c.GIOU_WEIGHT,
        "alpha": c.ALPHA,
        "gamma": c.GAMMA,
    }


@MATCHER_REGISTRY.register()
def minimum(cfg: Any) -> Matcher:
    """The cheapest sample of every target (the paper)."""
    return MinCostMatcher(**matcher_options(cfg))


@MATCHER_REGISTRY.register()
def hungarian(cfg: Any) -> Matcher:
    """One-to-one assignment of least total cost."""
    return HungarianMatcher(**matcher_options(cfg))


@MATCHER_REGISTRY.register()
def poto(cfg: Any) -> Matcher:
    """One-to-one assignment of greatest quality p^0.2 · IoU^0.8 within the box (DeFCN)."""
    quality = Alignment(class_power=0.2, iou_power=0.8, outside=0.0)
    return HungarianMatcher(location=quality, class_weight=0.0)


@MATCHER_REGISTRY.register()
def topk(cfg: Any) -> Matcher:
    """One-to-many: the cheapest samples within every target's box, by the costs of the paper."""
    return TopKMatcher(**matcher_options(cfg), topk=cfg.MODEL.OneNet.AUX.TOPK)


@MATCHER_REGISTRY.register()
def alignment(cfg: Any) -> Matcher:
    """One-to-many: the samples of greatest p^α · IoU^β within every target's box (TOOD)."""
    aux = cfg.MODEL.OneNet.AUX
    quality = Alignment(class_power=aux.ALPHA, iou_power=aux.BETA)
    return ExclusiveMatcher(location=quality, class_weight=0.0, topk=aux.TOPK)


@MATCHER_REGISTRY.register()
def points(cfg: Any) -> Matcher:
    """One-to-many: the samples in the middle of every target's box (FCOS)."""
    region = CentreRegion(radius=cfg.MODEL.OneNet.AUX.RADIUS, level_sizes=_level_sizes(cfg))
    return ExclusiveMatcher(location=region, class_weight=0.0)


@MATCHER_REGISTRY.register()
def centre(cfg: Any) -> Matcher:
    """One sample, the nearest to the centre of every target's box (CenterNet)."""
    nearest = NearestCentre(level_sizes=_level_sizes(cfg))
    return MinCostMatcher(location=nearest, class_weight=0.0)


@MATCHER_REGISTRY.register()
def iou_threshold(cfg: Any) -> Matcher:
    """One-to-many: the anchors of IoU above a threshold; some others are ignored (RetinaNet)."""
    rules = cfg.MODEL.OneNet.RULES
    low, high = rules.IOU_THRESHOLDS
    return ThresholdMatcher(
        location=AnchorOverlap(scale=rules.ANCHOR_SCALE),
        class_weight=0.0,
        low=low,
        high=high,
        low_quality=rules.LOW_QUALITY,
    )


@MATCHER_REGISTRY.register()
def atss(cfg: Any) -> Matcher:
    """One-to-many: the nearest anchors, from a threshold on that adapts to every target (ATSS)."""
    rules = cfg.MODEL.OneNet.RULES
    overlap = AdaptiveThreshold(topk=rules.ATSS_TOPK, scale=rules.ANCHOR_SCALE)
    return ExclusiveMatcher(location=overlap, class_weight=0.0)


@MATCHER_REGISTRY.register()
def simota(cfg: Any) -> Matcher:
    """One-to-many: the cheapest samples, as many as good boxes are predicted (YOLOX)."""
    rules = cfg.MODEL.OneNet.RULES
    claims = DynamicTopK(
        radius=rules.SIMOTA_RADIUS, topk=rules.SIMOTA_TOPK, iou_weight=rules.SIMOTA_IOU_COST
    )
    return ExclusiveMatcher(location=claims, class_weight=0.0)


@LOCATION_COST_REGISTRY.register()
def predicted(cfg: Any) -> nn.Module:
    """L1 distance and GIoU of the predicted boxes (the paper)."""
    c = cfg.MODEL.OneNet
    return PredictedLocation(l1_weight=c.L1_COST, giou_weight=c.GIOU_COST)


@LOCATION_COST_REGISTRY.register()
def predefined(cfg: Any) -> nn.Module:
    """The cost of the grid points or anchors themselves, which depends on the head."""
    head = cfg.MODEL.OneNet.HEAD
    if head not in PREDEFINED_COSTS:
        raise ConfigError(
            "MODEL.OneNet.LOCATION_COST 'predefined' is known for the heads "
            f"{', '.join(PREDEFINED_COSTS)}, not for {head!r}; add one of onenet.assignment.costs "
            "to onenet.PREDEFINED_COSTS"
        )
    return PREDEFINED_COSTS[head](cfg)


def _centre_distance(cfg: Any) -> nn.Module:
    return PredefinedPoint(l1_weight=cfg.MODEL.OneNet.L1_COST)


def _centre_distance_by_level(cfg: Any) -> nn.Module:
    return PredefinedPoint(l1_weight=cfg.MODEL.OneNet.L1_COST, level_sizes=object_sizes(cfg))


def _level_sizes(cfg: Any) -> Sequence[tuple[float, float]] | None:
    """:func:`object_sizes`; ``None`` for the deconvolution head, whose level has all sizes."""
    return object_sizes(cfg) if cfg.MODEL.OneNet.HEAD in ("FCOS", "RetinaNet") else None


def object_sizes(cfg: Any) -> Sequence[tuple[float, float]]:
    """(smallest, largest) object in px that each level answers for.

    Raises:
        ConfigError: their number is not that of the levels.
    """
    c = cfg.MODEL.OneNet
    if len(c.OBJECT_SIZES_OF_INTEREST) != len(c.IN_FEATURES):
        raise ConfigError(
            "MODEL.OneNet.OBJECT_SIZES_OF_INTEREST must hold a range for each of the "
            f"{len(c.IN_FEATURES)} maps in IN_FEATURES, got {len(c.OBJECT_SIZES_OF_INTEREST)}"
        )
    return c.OBJECT_SIZES_OF_INTEREST


def _anchor_overlap(cfg: Any) -> nn.Module:
    c = cfg.MODEL.OneNet
    return PredefinedAnchor(l1_weight=c.L1_COST, giou_weight=c.GIOU_COST)


PREDEFINED_COSTS.update(
    CenterNet=_centre_distance, FCOS=_centre_distance_by_level, RetinaNet=_anchor_overlap
)
