"""Every ``MODEL.OneNet`` key, and the one place that turns a config into core objects.

Works on Detectron2's ``CfgNode`` and on the embedded engine's alike: both descend from yacs.

Heads and matchers are looked up in registries, so that a new one needs no change here::

    @HEAD_REGISTRY.register()
    def MyHead(cfg, shapes):  # MODEL.OneNet.HEAD "MyHead"
        return ...
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fvcore.common.registry import Registry
from torch import nn

from .costs import PredefinedAnchor, PredefinedPoint, PredictedLocation
from .heads import CenterNetHead, FCOSHead, Head, RetinaNetHead
from .inference_config import add_inference_config
from .losses import Criterion
from .matcher import HungarianMatcher, Matcher, MinCostMatcher
from .training_config import add_training_config
from .yaml_files import ConfigError

# Values of MODEL.OneNet.HEAD: ``(cfg, shapes) -> Head``, where ``shapes`` are those of the maps in
# MODEL.OneNet.IN_FEATURES, each with ``channels`` and ``stride``.
HEAD_REGISTRY = Registry("ONENET_HEAD")
# What LOCATION_COST "predefined" means for a head, under the head's name: ``cfg -> module``.
PREDEFINED_COSTS: dict[str, Callable[[Any], nn.Module]] = {}
# Values of MODEL.OneNet.MATCHER: called with the keywords of Matcher.
MATCHER_REGISTRY = Registry("ONENET_MATCHER")
# Values of TEST.EVALUATOR.
EVALUATORS = ("coco", "crowdhuman")


def add_onenet_config(cfg: Any) -> None:
    """Add the keys of OneNet, with the original's defaults, to a Detectron2-style config.

    Args:
        cfg: a yacs ``CfgNode`` (Detectron2's, or ``onenet.engine.config.get_cfg()``'s); changed
            in place. ``SOLVER.OPTIMIZER``, ``SOLVER.BACKBONE_MULTIPLIER``, ``TEST.EVALUATOR``,
            ``DATALOADER.SKIP_UNREADABLE`` and the keys of :mod:`onenet.inference_config` and
            :mod:`onenet.training_config` are added too.
    """
    node = type(cfg)
    c = cfg.MODEL.OneNet = node()
    # Number of foreground classes.
    c.NUM_CLASSES = 80
    # Class-wise NMS at IoU 0.5 after the top-k; for ablation only.
    c.NMS = False
    # "CenterNet", "FCOS" or "RetinaNet".
    c.HEAD = "CenterNet"
    # Feature maps that the head reads, finest first.
    c.IN_FEATURES = ["res2", "res3", "res4", "res5"]

    # CenterNet head.
    # Between the last two convolutions: "relu" or "gelu".
    c.ACTIVATION = "relu"
    # Channels of res5 and of the three upsampling stages.
    c.DECONV_CHANNEL = [2048, 256, 128, 64]
    # Kernel sizes of the three transposed convolutions: 2, 3 or 4.
    c.DECONV_KERNEL = [4, 4, 4]
    # Deformable instead of plain convolutions in the upsampling stages.
    c.DCN = True
    # Deformable convolution v2 (with a mask) instead of v1.
    c.MODULATE_DEFORM = True

    # FCOS and RetinaNet heads.
    # Convolutions in each of the two towers, and their channels.
    c.NUM_CONV = 4
    c.CONV_CHANNELS = 256
    # Normalisation of FCOS's towers: "GN" or "BN".
    c.CONV_NORM = "GN"
    # FCOS with predefined location cost: sizes in px that each level answers for.
    c.OBJECT_SIZES_OF_INTEREST = [
        [-1, 64],
        [64, 128],
        [128, 256],
        [256, 512],
        [512, float("inf")],
    ]

    # Assignment.
    # "minimum": the cheapest sample of every target (the paper); "hungarian": one-to-one.
    c.MATCHER = "minimum"
    # "predicted": cost of the predicted boxes; "predefined": of the grid points or anchors.
    c.LOCATION_COST = "predicted"
    c.CLASS_COST = 2.0
    c.GIOU_COST = 2.0
    c.L1_COST = 5.0

    # Loss weights.
    c.CLASS_WEIGHT = 2.0
    c.GIOU_WEIGHT = 2.0
    c.L1_WEIGHT = 5.0

    # Focal loss, and the class probability that an untrained head starts from.
    c.ALPHA = 0.25
    c.GAMMA = 2.0
    c.PRIOR_PROB = 0.01

    # Train on the next image in place of one that cannot be read, and list those at the end.
    cfg.DATALOADER.SKIP_UNREADABLE = False
    # "ADAMW" or "SGD".
    cfg.SOLVER.OPTIMIZER = "ADAMW"
    # The backbone's learning rate as a multiple of BASE_LR.
    cfg.SOLVER.BACKBONE_MULTIPLIER = 1.0
    # "coco": AP; "crowdhuman": AP, mMR and recall of one class, crowd regions ignored.
    cfg.TEST.EVALUATOR = "coco"
    add_inference_config(cfg)
    add_training_config(cfg)

    # Names of the original's code base that say the same in another way.
    cfg.register_renamed_key(
        "MODEL.OneNet.PRE_DEFINE",
        "MODEL.OneNet.LOCATION_COST",
        message="write 'predefined' for True and 'predicted' for False",
    )
    cfg.register_deprecated_key("MODEL.OneNet.FEATURES_STRIDE")  # the backbone knows its strides


def model_options(cfg: Any, backbone: nn.Module, shapes: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of :class:`~onenet.model.OneNet` around an engine's backbone.

    Args:
        shapes: of the backbone's maps by name, each with ``channels`` and ``stride``.

    Raises:
        ValueError: a value that does not fit, with its key.
    """
    return {
        **frame_options(cfg, backbone),
        "head": build_head(cfg, shapes),
        "criterion": build_criterion(cfg),
    }


def frame_options(cfg: Any, backbone: nn.Module) -> dict[str, Any]:
    """Those arguments that stay the same whatever the head and its criterion."""
    return {
        "backbone": backbone,
        "in_features": cfg.MODEL.OneNet.IN_FEATURES,
        "pixel_mean": cfg.MODEL.PIXEL_MEAN,
        "pixel_std": cfg.MODEL.PIXEL_STD,
        "max_detections": cfg.TEST.DETECTIONS_PER_IMAGE,
        "nms_iou": 0.5 if cfg.MODEL.OneNet.NMS else None,
    }


def check_evaluator(cfg: Any) -> None:
    """Raise ``ConfigError`` unless ``TEST.EVALUATOR`` is known and fits the number of classes."""
    name, classes = cfg.TEST.EVALUATOR, cfg.MODEL.OneNet.NUM_CLASSES
    if name not in EVALUATORS:
        raise ConfigError(f"TEST.EVALUATOR must be one of {', '.join(EVALUATORS)}, got {name!r}")
    if name == "crowdhuman" and classes != 1:
        raise ConfigError(
            "TEST.EVALUATOR 'crowdhuman' is for a single class, but MODEL.OneNet.NUM_CLASSES is "
            f"{classes}; expected TEST.EVALUATOR coco"
        )


def build_head(cfg: Any, shapes: Mapping[str, Any]) -> Head:
    """The head that ``MODEL.OneNet.HEAD`` names; ``shapes`` as in :func:`model_options`."""
    inputs = head_shapes(cfg, shapes)
    build = _look_up(HEAD_REGISTRY, "MODEL.OneNet.HEAD", cfg.MODEL.OneNet.HEAD)
    return build(cfg, inputs)


def head_shapes(cfg: Any, shapes: Mapping[str, Any]) -> list[Any]:
    """The shapes of the maps in ``MODEL.OneNet.IN_FEATURES``; ``ValueError`` if one is not made."""
    names = cfg.MODEL.OneNet.IN_FEATURES
    missing = [name for name in names if name not in shapes]
    if missing:
        raise ValueError(
            f"MODEL.OneNet.IN_FEATURES names {', '.join(missing)}, but the backbone "
            f"({cfg.MODEL.BACKBONE.NAME}) makes {', '.join(shapes)}"
        )
    return [shapes[name] for name in names]


def build_matcher(cfg: Any) -> Matcher:
    """The matcher that ``MODEL.OneNet.MATCHER`` names, with its location cost."""
    c = cfg.MODEL.OneNet
    if c.LOCATION_COST == "predicted":
        location = PredictedLocation(l1_weight=c.L1_COST, giou_weight=c.GIOU_COST)
    elif c.LOCATION_COST == "predefined":
        if c.HEAD not in PREDEFINED_COSTS:
            raise ValueError(
                "MODEL.OneNet.LOCATION_COST 'predefined' is known for the heads "
                f"{', '.join(PREDEFINED_COSTS)}, not for {c.HEAD!r}; add one of "
                "onenet.costs to onenet.config.PREDEFINED_COSTS"
            )
        location = PREDEFINED_COSTS[c.HEAD](cfg)
    else:
        raise ValueError(
            "MODEL.OneNet.LOCATION_COST must be 'predicted' or 'predefined', "
            f"got {c.LOCATION_COST!r}"
        )
    if not (c.CLASS_COST or c.L1_COST or c.GIOU_COST):
        raise ValueError("MODEL.OneNet: CLASS_COST, L1_COST and GIOU_COST cannot all be 0")
    matcher = _look_up(MATCHER_REGISTRY, "MODEL.OneNet.MATCHER", c.MATCHER)
    return matcher(location=location, class_weight=c.CLASS_COST, alpha=c.ALPHA, gamma=c.GAMMA)


def build_criterion(cfg: Any) -> Criterion:
    """Matcher and losses."""
    c = cfg.MODEL.OneNet
    return Criterion(
        matcher=build_matcher(cfg),
        class_weight=c.CLASS_WEIGHT,
        l1_weight=c.L1_WEIGHT,
        giou_weight=c.GIOU_WEIGHT,
        alpha=c.ALPHA,
        gamma=c.GAMMA,
    )


def _look_up(registry: Registry, key: str, name: str) -> Any:
    if name not in registry:
        choices = ", ".join(choice for choice, _ in registry)
        raise ValueError(f"{key} must be one of {choices}, got {name!r}")
    return registry.get(name)


def _shared_channels(shapes: list[Any]) -> int:
    channels = {shape.channels for shape in shapes}
    if len(channels) != 1:
        raise ValueError(
            "heads with shared towers need maps of equal channels (an FPN backbone), "
            f"got {[shape.channels for shape in shapes]}"
        )
    return channels.pop()


@HEAD_REGISTRY.register()
def CenterNet(cfg: Any, shapes: list[Any]) -> Head:
    """Deconvolution head on res2…res5."""
    c = cfg.MODEL.OneNet
    return CenterNetHead(
        in_channels=[shape.channels for shape in shapes],
        stride=shapes[0].stride,
        num_classes=c.NUM_CLASSES,
        deconv_channels=c.DECONV_CHANNEL,
        deconv_kernels=c.DECONV_KERNEL,
        dcn=c.DCN,
        modulated=c.MODULATE_DEFORM,
        activation=c.ACTIVATION,
        prior_prob=c.PRIOR_PROB,
    )


@HEAD_REGISTRY.register()
def FCOS(cfg: Any, shapes: list[Any]) -> Head:
    """Shared towers, grid points."""
    c = cfg.MODEL.OneNet
    return FCOSHead(
        in_channels=_shared_channels(shapes),
        strides=[shape.stride for shape in shapes],
        num_classes=c.NUM_CLASSES,
        num_convs=c.NUM_CONV,
        channels=c.CONV_CHANNELS,
        norm=c.CONV_NORM,
        prior_prob=c.PRIOR_PROB,
    )


@HEAD_REGISTRY.register()
def RetinaNet(cfg: Any, shapes: list[Any]) -> Head:
    """Shared towers, anchors."""
    c = cfg.MODEL.OneNet
    anchors = cfg.MODEL.ANCHOR_GENERATOR
    if len(anchors.ASPECT_RATIOS) != 1:
        raise ValueError(
            "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS must hold one list, shared by all levels, "
            f"got {len(anchors.ASPECT_RATIOS)}"
        )
    # One list of sizes stands for all levels, as in Detectron2.
    sizes = list(anchors.SIZES) * (len(shapes) if len(anchors.SIZES) == 1 else 1)
    return RetinaNetHead(
        in_channels=_shared_channels(shapes),
        strides=[shape.stride for shape in shapes],
        num_classes=c.NUM_CLASSES,
        anchor_sizes=sizes,
        aspect_ratios=anchors.ASPECT_RATIOS[0],
        anchor_offset=anchors.OFFSET,
        num_convs=c.NUM_CONV,
        channels=c.CONV_CHANNELS,
        prior_prob=c.PRIOR_PROB,
    )


def _centre_distance(cfg: Any) -> nn.Module:
    return PredefinedPoint(l1_weight=cfg.MODEL.OneNet.L1_COST)


def _centre_distance_by_level(cfg: Any) -> nn.Module:
    c = cfg.MODEL.OneNet
    if len(c.OBJECT_SIZES_OF_INTEREST) != len(c.IN_FEATURES):
        raise ValueError(
            "MODEL.OneNet.OBJECT_SIZES_OF_INTEREST must hold a range for each of the "
            f"{len(c.IN_FEATURES)} maps in IN_FEATURES, got {len(c.OBJECT_SIZES_OF_INTEREST)}"
        )
    return PredefinedPoint(l1_weight=c.L1_COST, level_sizes=c.OBJECT_SIZES_OF_INTEREST)


def _anchor_overlap(cfg: Any) -> nn.Module:
    c = cfg.MODEL.OneNet
    return PredefinedAnchor(l1_weight=c.L1_COST, giou_weight=c.GIOU_COST)


PREDEFINED_COSTS.update(
    CenterNet=_centre_distance, FCOS=_centre_distance_by_level, RetinaNet=_anchor_overlap
)


@MATCHER_REGISTRY.register()
def minimum(**keywords: Any) -> Matcher:
    """The cheapest sample of every target."""
    return MinCostMatcher(**keywords)


@MATCHER_REGISTRY.register()
def hungarian(**keywords: Any) -> Matcher:
    """One-to-one assignment of least total cost."""
    return HungarianMatcher(**keywords)
