"""What the values of a config may be, beyond their types.

``COMMON`` holds for both engines, in the same words. ``EMBEDDED`` holds where the embedded engine
does less than Detectron2: devices, backbones, schedules, and the baselines of torchvision. Names of
registered parts (head, matcher, location cost, criterion) are checked when the parts are built.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Any

from onenet.backbones.mobilenet import SIZES
from onenet.backbones.resnet import NORMS, STAGES
from onenet.errors import ConfigError
from onenet.evaluation.registry import choose_evaluator
from onenet.heads.base import INITS
from onenet.inference.optimize import PRECISIONS

from .backbone import check_backbone, check_features, norm_of
from .device import DEVICES
from .values import (
    LAYERS,
    MOST,
    NATURAL,
    NOT_NEGATIVE,
    POSITIVE,
    ROWS,
    SHARE,
    SIZE,
    TEXTS,
    Rule,
    above,
    each,
    numbers,
    one_of,
    ranges,
    require,
    rising,
    rising_from_0,
    some_of,
    span,
    texts,
    whole,
)

logger = logging.getLogger(__name__)
# How the names of the detectors of other libraries begin, which the embedded engine alone has.
BASELINES = ("torchvision.", "transformers.")


def check_common(cfg: Any) -> None:
    """Check every value that both engines honour and that depends on neither machine nor data.

    Args:
        cfg: Detectron2's or the embedded engine's, with its files and overrides merged.

    Raises:
        ConfigError: names the key, its value and what it may be.
    """
    _check(cfg, COMMON)
    _check_input(cfg.INPUT)
    check_shares(cfg, processes=1)
    _check_best(cfg)
    require(
        cfg.MODEL.META_ARCHITECTURE == "OneNet" or not cfg.MODEL.OneNet.AUX.ENABLED,
        "MODEL.OneNet.AUX.ENABLED",
        True,
        f"False for MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE}, which has no such "
        "branch",
    )
    if cfg.CUDNN_DETERMINISTIC and cfg.CUDNN_BENCHMARK:
        raise ConfigError(
            "CUDNN_DETERMINISTIC and CUDNN_BENCHMARK are both True; expected one of them: "
            "benchmarks choose other algorithms in every run"
        )


def check_embedded(cfg: Any) -> None:
    """:func:`check_common`, and what the embedded engine alone restricts.

    Args:
        cfg: of :func:`onenet.lightning.config.get_cfg`, with its files and overrides merged.

    Raises:
        ConfigError: see :func:`check_common`.
    """
    check_common(cfg)
    _check(cfg, EMBEDDED)
    check_backbone(cfg.MODEL)
    check_features(cfg.MODEL)
    name = cfg.MODEL.META_ARCHITECTURE
    own_loss = name.startswith(BASELINES)
    if name.startswith("transformers."):
        own_loss = cfg.MODEL.TRANSFORMERS.LOSS == "library"
    require(
        cfg.SOLVER.ACCUMULATE == 1 or not own_loss,
        "SOLVER.ACCUMULATE",
        cfg.SOLVER.ACCUMULATE,
        f"1 for the detectors of {name.partition('.')[0]}, which normalise the losses of each part "
        "separately",
    )
    choose_evaluator(cfg)


def warn_of_idle_steps(cfg: Any) -> None:
    """Warn of ``SOLVER.STEPS`` that training does not reach, which lower no rate."""
    s = cfg.SOLVER
    idle = [step for step in s.STEPS if step >= s.MAX_ITER]
    if not idle or s.LR_SCHEDULER_NAME != "WarmupMultiStepLR":
        return
    effect = "never lowers the learning rate" if len(idle) == len(s.STEPS) else "skips these"
    logger.warning(
        "SOLVER.STEPS %s: training ends at SOLVER.MAX_ITER %d and %s (%s). About 2/3 and 8/9 of "
        "MAX_ITER are usual: SOLVER.STEPS '%s'",
        tuple(s.STEPS),
        s.MAX_ITER,
        effect,
        ", ".join(map(str, idle)),
        tuple(sorted({s.MAX_ITER * 2 // 3, s.MAX_ITER * 8 // 9} - {0})),
    )


def check_shares(cfg: Any, processes: int) -> None:
    """Raise ``ConfigError`` unless processes, and their parts, can share a batch evenly."""
    images, parts = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.ACCUMULATE
    if images % processes:
        raise ConfigError(
            f"SOLVER.IMS_PER_BATCH is {images}, which {processes} processes cannot share evenly: "
            "give a multiple"
        )
    if parts < 1 or images // processes % parts:
        raise ConfigError(
            f"SOLVER.ACCUMULATE is {parts}; expected a divisor of {images // processes}, the "
            "images of SOLVER.IMS_PER_BATCH that each process has"
        )


def check_norms(cfg: Any, processes: int, device: str) -> None:
    """Raise ``ConfigError`` if processes would share statistics that torch shares on CUDA only.

    Args:
        device: type of the device, "cpu" or another.
    """
    key, norm = norm_of(cfg.MODEL)
    if norm == "SyncBN" and processes > 1 and device == "cpu":
        raise ConfigError(
            f"{key} is 'SyncBN', which several processes train with on CUDA only; on the CPU take "
            "'BN' or 'FrozenBN'"
        )


def _check_input(node: Any) -> None:
    if node.MIN_SIZE_TRAIN_SAMPLING == "range":
        sizes = node.MIN_SIZE_TRAIN
        require(
            len(sizes) == 2 and sizes[0] <= sizes[1],
            "INPUT.MIN_SIZE_TRAIN",
            sizes,
            "the smallest and the largest size, as MIN_SIZE_TRAIN_SAMPLING is 'range'",
        )
    relative = node.CROP.TYPE.startswith("relative")
    require(
        all(size <= 1 for size in node.CROP.SIZE) if relative else whole(1)(node.CROP.SIZE),
        "INPUT.CROP.SIZE",
        node.CROP.SIZE,
        f"{'shares in (0, 1]' if relative else 'whole pixels'} as CROP.TYPE is {node.CROP.TYPE!r}",
    )


def _check_best(cfg: Any) -> None:
    metric, period = cfg.TEST.BEST_METRIC, cfg.TEST.EVAL_PERIOD
    require(
        period > 0 or not metric,
        "TEST.EVAL_PERIOD",
        period,
        f"a number of iterations, as TEST.BEST_METRIC {metric!r} compares evaluations on the way",
    )
    require(
        bool(metric) or not cfg.SOLVER.EARLY_STOP,
        "TEST.BEST_METRIC",
        metric,
        f"a metric, such as 'bbox/AP', as SOLVER.EARLY_STOP is {cfg.SOLVER.EARLY_STOP}",
    )


def _check(cfg: Any, rules: Sequence[Rule]) -> None:
    for key, allowed, expected in rules:
        value = cfg
        for name in key.split("."):
            value = value[name]
        # Detectron2's yacs takes None for a value of any type.
        require(value is not None and allowed(value), key, value, expected)


COMMON: list[Rule] = [
    ("OUTPUT_DIR", bool, "a folder"),
    ("MODEL.PIXEL_MEAN", numbers(3), "three numbers"),
    ("MODEL.PIXEL_STD", numbers(3, low=0), "three numbers above 0"),
    *each("MODEL.ANCHOR_GENERATOR", "SIZES ASPECT_RATIOS", *ROWS),
    ("MODEL.ANCHOR_GENERATOR.OFFSET", lambda value: 0 <= value < 1, "a number from 0 to below 1"),
    *each("MODEL.OneNet", "NUM_CLASSES CONV_CHANNELS", *SIZE),
    *each("MODEL.OneNet", "NUM_CONV NUM_HEADS INFERENCE_HEADS", *LAYERS),
    ("MODEL.OneNet.IN_FEATURES", *TEXTS),
    one_of("MODEL.OneNet.ACTIVATION", "relu", "gelu"),
    (
        "MODEL.OneNet.DECONV_CHANNEL",
        whole(1, MOST),
        f"a list of whole numbers above 0, {MOST} at most",
    ),
    ("MODEL.OneNet.DECONV_KERNEL", whole(2, 4), "a list of kernel sizes 2, 3 or 4"),
    one_of("MODEL.OneNet.CONV_NORM", "GN", "BN"),
    ("MODEL.OneNet.OBJECT_SIZES_OF_INTEREST", ranges, "pairs [low, high] in px with low < high"),
    *each(
        "MODEL.OneNet",
        "CLASS_COST GIOU_COST L1_COST CLASS_WEIGHT GIOU_WEIGHT L1_WEIGHT GAMMA",
        *NOT_NEGATIVE,
    ),
    ("MODEL.OneNet.ALPHA", *SHARE),
    ("MODEL.OneNet.PRIOR_PROB", lambda value: 0 < value < 1, "a number between 0 and 1"),
    one_of("MODEL.OneNet.INIT", *INITS),
    one_of("MODEL.OneNet.CLASS_TARGET", "hard", "iou"),
    ("MODEL.OneNet.TARGET_GAMMA", above(0), "a number above 0"),
    *each("MODEL.OneNet", "TARGET_RAMP AUX.MAIN_GRADIENT", *SHARE),
    (
        "MODEL.OneNet.RULES.IOU_THRESHOLDS",
        lambda value: numbers(2, low=0)(value) and value[0] <= value[1] <= 1,
        "two numbers above 0, 1 at most, the second not below the first",
    ),
    *each("MODEL.OneNet", "RULES.ATSS_TOPK RULES.SIMOTA_TOPK AUX.TOPK", *SIZE),
    *each("MODEL.OneNet.RULES", "ANCHOR_SCALE SIMOTA_RADIUS", above(0), "a number above 0"),
    ("MODEL.OneNet.RULES.SIMOTA_IOU_COST", *NOT_NEGATIVE),
    *each("MODEL.OneNet.AUX", "ALPHA BETA WEIGHT", *NOT_NEGATIVE),
    ("MODEL.OneNet.AUX.RADIUS", above(0), "a number above 0"),
    one_of("MODEL.OneNet.AUX.CLASS_TARGET", "hard", "soft"),
    ("MODEL.OneNet.AUX.FALL", span, "[], or two rising numbers from 0 to 1"),
    ("MODEL.CenterNet.CHANNELS", *SIZE),
    ("MODEL.CenterNet.PEAK_KERNEL", lambda value: value > 0 and value % 2 == 1, "an odd number"),
    *each("MODEL.CenterNet", "SIZE_WEIGHT OFFSET_WEIGHT", *NOT_NEGATIVE),
    *each("MODEL.SparseRCNN", "NUM_PROPOSALS NHEADS DIM_FEEDFORWARD DIM_DYNAMIC", *SIZE),
    ("MODEL.SparseRCNN.NUM_HEADS", *LAYERS),
    *each("MODEL.YOLOv1", "INPUT_SIZE GRID BOXES CHANNELS HIDDEN", *SIZE),
    ("MODEL.YOLOv1.DROPOUT", lambda value: 0 <= value < 1, "a number from 0 to below 1"),
    *each("MODEL.YOLOv1", "COORD_WEIGHT NOOBJ_WEIGHT", *NOT_NEGATIVE),
    ("MODEL.YOLOv1.NMS_THRESH", *SHARE),
    one_of("MODEL.MOBILENETV3.SIZE", *SIZES),
    ("MODEL.MOBILENETV3.WIDTH", lambda value: 0 < value <= 100, "a number above 0, 100 at most"),
    one_of("MODEL.MOBILENETV3.NORM", *NORMS),
    one_of("MODEL.TIMM.NORM", *NORMS),
    ("MODEL.TIMM.OUT_INDICES", rising_from_0, "[], or a list of rising whole numbers from 0"),
    ("HOOKS", *TEXTS),
    ("LOGGERS", *TEXTS),
    ("MODEL_EMA.DECAY", lambda value: 0 <= value < 1, "a number from 0 to below 1"),
    ("INPUT.MIN_SIZE_TRAIN", whole(1), "a list of whole numbers above 0"),
    one_of("INPUT.MIN_SIZE_TRAIN_SAMPLING", "choice", "range"),
    *each("INPUT", "MAX_SIZE_TRAIN MAX_SIZE_TEST", *POSITIVE),
    ("INPUT.MIN_SIZE_TEST", *NATURAL),
    one_of("INPUT.RANDOM_FLIP", "horizontal", "vertical", "none"),
    one_of("INPUT.CROP.TYPE", "relative", "relative_range", "absolute", "absolute_range"),
    ("INPUT.CROP.SIZE", numbers(2, low=0), "two numbers above 0: height and width"),
    (
        "INPUT.AUGMENTATIONS",
        texts,
        "a list of augmentations, such as ['flip', 'mosaic(probability=0.3)']",
    ),
    ("INPUT.AUGMENTATIONS_OFF", *SHARE),
    one_of("INPUT.FORMAT", "RGB", "BGR"),
    *each("DATASETS", "TRAIN TEST", texts, "a list of known names or ANNOTATIONS.json:FOLDER"),
    ("DATALOADER.NUM_WORKERS", *NATURAL),
    ("DATALOADER.REPEAT_THRESHOLD", *NOT_NEGATIVE),
    one_of("SOLVER.OPTIMIZER", "ADAMW", "SGD"),
    one_of("SOLVER.WARMUP_METHOD", "linear", "constant"),
    *each("SOLVER", "MAX_ITER CHECKPOINT_PERIOD IMS_PER_BATCH", *POSITIVE),
    ("SOLVER.BASE_LR", above(0), "a number above 0"),
    *each("SOLVER", "BASE_LR_END WEIGHT_DECAY BACKBONE_MULTIPLIER", *NOT_NEGATIVE),
    ("SOLVER.MOMENTUM", lambda value: 0 <= value < 1, "a number from 0 to below 1"),
    ("SOLVER.GAMMA", above(0), "a number above 0"),
    ("SOLVER.STEPS", rising, "a list of rising whole numbers above 0"),
    ("SOLVER.WARMUP_FACTOR", *SHARE),
    *each("SOLVER", "WARMUP_ITERS SKIP_NONFINITE EARLY_STOP", *NATURAL),
    ("SOLVER.CHECKPOINT_KEEP", NATURAL[0], "how many checkpoints to keep, or 0 for all"),
    one_of("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "full_model", "norm", "value"),
    ("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", above(0), "a number above 0"),
    ("SOLVER.CLIP_GRADIENTS.NORM_TYPE", lambda value: value > 0, "a number above 0, or .inf"),
    *each("TEST", "EVAL_PERIOD IMS_PER_BATCH", *NATURAL),
    ("TEST.DETECTIONS_PER_IMAGE", *POSITIVE),
    ("TEST.TILES", lambda value: value == 0 or value >= 32, "0, or a side of at least 32 px"),
    ("TEST.TILE_OVERLAP", lambda value: 0 <= value <= 0.9, "a number from 0 to 0.9"),
    one_of("TEST.PRECISION", *PRECISIONS),
]

EMBEDDED: list[Rule] = [
    ("VERSION", lambda value: value == 2, "2, the version of Detectron2's config format"),
    ("MODEL.DEVICE", lambda value: bool(re.fullmatch(r"cpu|mps|cuda(:\d+)?", value)), DEVICES),
    ("MODEL.BACKBONE.FREEZE_AT", lambda value: 0 <= value <= 5, "a whole number from 0 to 5"),
    one_of("MODEL.RESNETS.DEPTH", 18, 34, 50, 101),
    one_of("MODEL.RESNETS.NORM", "BN", "FrozenBN", "SyncBN"),
    ("MODEL.RESNETS.OUT_FEATURES", some_of(STAGES), f"some of {', '.join(STAGES)}"),
    ("MODEL.FPN.IN_FEATURES", *TEXTS),
    ("MODEL.FPN.OUT_CHANNELS", *SIZE),
    *each("MODEL.TORCHVISION", "SCORE_THRESH NMS_THRESH", *SHARE),
    one_of("MODEL.TRANSFORMERS.LOSS", "library", "OneNet"),
    (
        "MODEL.TRANSFORMERS.SIZE",
        lambda value: value == 0 or 32 <= value <= MOST,
        "0, or at least 32",
    ),
    one_of("DATALOADER.SAMPLER_TRAIN", "TrainingSampler", "RepeatFactorTrainingSampler"),
    one_of("SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR", "WarmupCosineLR"),
]
