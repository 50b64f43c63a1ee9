"""Every ``MODEL.OneNet`` key, and the one place that turns a config into core objects.

Works on Detectron2's ``CfgNode`` and on the embedded engine's alike: both descend from yacs.
Heads and matchers are looked up in :mod:`onenet.config.registries`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from onenet.assignment.costs import PredictedLocation
from onenet.assignment.criterion import Criterion
from onenet.assignment.matchers import Matcher
from onenet.baselines.centernet import CenterCriterion, CenterHead
from onenet.errors import ConfigError, look_up
from onenet.heads.base import Head

from .inference import add_inference_config
from .registries import HEAD_REGISTRY, MATCHER_REGISTRY, PREDEFINED_COSTS
from .training import add_training_config

# Values of TEST.EVALUATOR.
EVALUATORS = ("coco", "crowdhuman")


def add_onenet_config(cfg: Any) -> None:
    """Add the keys of OneNet, with the original's defaults, to a Detectron2-style config.

    Args:
        cfg: a yacs ``CfgNode`` (Detectron2's, or ``onenet.lightning.config.get_cfg()``'s); changed
            in place. ``MODEL.CenterNet``, ``SOLVER.OPTIMIZER``, ``SOLVER.BACKBONE_MULTIPLIER``,
            ``TEST.EVALUATOR``, ``DATALOADER.SKIP_UNREADABLE`` and the keys of
            :mod:`onenet.config.inference` and :mod:`onenet.config.training` are added too.
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
    # Multi-head training (section 4.1 of the paper's first version; 3 there): stages one behind
    # the other, all trained, with shared class and box convolutions.
    c.NUM_HEADS = 1
    # How many of them run at inference, 1 to NUM_HEADS; the last of these gives the detections.
    c.INFERENCE_HEADS = 1

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

    # The meta-architecture CenterNet. Of MODEL.OneNet it has NUM_CLASSES, IN_FEATURES,
    # DECONV_CHANNEL, DECONV_KERNEL, DCN, MODULATE_DEFORM, PRIOR_PROB and NMS.
    c = cfg.MODEL.CenterNet = node()
    # Channels between the two convolutions of each branch.
    c.CHANNELS = 64
    # Side of the neighbourhood, in cells, in which only the best score is kept; 1 keeps all.
    c.PEAK_KERNEL = 3
    # Loss weights; the heat map's is 1.
    c.SIZE_WEIGHT = 0.1
    c.OFFSET_WEIGHT = 1.0

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
    """The arguments of :class:`~onenet.detector.OneNet` around an engine's backbone.

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


def centernet_options(cfg: Any, backbone: nn.Module, shapes: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of :class:`~onenet.baselines.centernet.CenterNet` around an engine's backbone.

    Args:
        shapes: as for :func:`model_options`.

    Raises:
        ValueError: a value that does not fit, with its key.
    """
    neck, c = cfg.MODEL.OneNet, cfg.MODEL.CenterNet
    inputs = head_shapes(cfg, shapes)
    return {
        **frame_options(cfg, backbone),
        "head": CenterHead(
            in_channels=[shape.channels for shape in inputs],
            stride=inputs[0].stride,
            num_classes=neck.NUM_CLASSES,
            deconv_channels=neck.DECONV_CHANNEL,
            deconv_kernels=neck.DECONV_KERNEL,
            dcn=neck.DCN,
            modulated=neck.MODULATE_DEFORM,
            channels=c.CHANNELS,
            prior_prob=neck.PRIOR_PROB,
        ),
        "criterion": CenterCriterion(size_weight=c.SIZE_WEIGHT, offset_weight=c.OFFSET_WEIGHT),
        "peak_kernel": c.PEAK_KERNEL,
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
    c = cfg.MODEL.OneNet
    head = look_up(HEAD_REGISTRY, "MODEL.OneNet.HEAD", c.HEAD)(cfg, inputs)
    built = {"NUM_HEADS": head.num_stages, "INFERENCE_HEADS": head.inference_stages}
    for key, count in built.items():
        if c[key] != count:
            raise ValueError(
                f"MODEL.OneNet.{key} is {c[key]}, but the head {c.HEAD!r} has {count}; expected "
                f"{count}, or MODEL.OneNet.HEAD 'CenterNet', which has as many as NUM_HEADS says"
            )
    return head


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
                "onenet.assignment.costs to onenet.config.registries.PREDEFINED_COSTS"
            )
        location = PREDEFINED_COSTS[c.HEAD](cfg)
    else:
        raise ValueError(
            "MODEL.OneNet.LOCATION_COST must be 'predicted' or 'predefined', "
            f"got {c.LOCATION_COST!r}"
        )
    if not (c.CLASS_COST or c.L1_COST or c.GIOU_COST):
        raise ValueError("MODEL.OneNet: CLASS_COST, L1_COST and GIOU_COST cannot all be 0")
    matcher = look_up(MATCHER_REGISTRY, "MODEL.OneNet.MATCHER", c.MATCHER)
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
