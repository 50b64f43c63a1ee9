"""What the values of a config must be, beyond their types."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from onenet.backbones.registry import BACKBONE_REGISTRY
from onenet.errors import ConfigError

from .build import check_evaluator
from .inference import check_inference
from .training import check_training

STAGES = ("res2", "res3", "res4", "res5")
PLAIN_BACKBONE = "build_resnet_backbone"
# The levels of each pyramid above those of the stages.
FPN_BACKBONES = {
    "build_retinanet_resnet_fpn_backbone": ["p6", "p7"],
    "build_resnet_fpn_backbone": ["p6"],
}


def check_cfg(cfg: Any) -> None:
    """Check every value that does not depend on the machine, the data or registered parts.

    Args:
        cfg: of :func:`onenet.lightning.config.get_cfg`, with its files and overrides merged.

    Raises:
        ConfigError: names the key, its value and what it may be.
    """
    for key, allowed, expected in _RULES:
        value = cfg
        for name in key.split("."):
            value = value[name]
        _require(allowed(value), key, value, expected)
    _check_input(cfg.INPUT)
    _check_backbone(cfg.MODEL)
    _check_features(cfg.MODEL)
    _require(
        cfg.SOLVER.ACCUMULATE == 1 or not cfg.MODEL.META_ARCHITECTURE.startswith("torchvision."),
        "SOLVER.ACCUMULATE",
        cfg.SOLVER.ACCUMULATE,
        "1 for torchvision's detectors, which normalise the losses of every part for themselves",
    )
    check_evaluator(cfg)
    check_inference(cfg)
    check_training(cfg, processes=1)


def _check_input(node: Any) -> None:
    if node.MIN_SIZE_TRAIN_SAMPLING == "range":
        sizes = node.MIN_SIZE_TRAIN
        _require(
            len(sizes) == 2 and sizes[0] <= sizes[1],
            "INPUT.MIN_SIZE_TRAIN",
            sizes,
            "the smallest and the largest size, as MIN_SIZE_TRAIN_SAMPLING is 'range'",
        )
    relative = node.CROP.TYPE.startswith("relative")
    _require(
        all(size <= 1 for size in node.CROP.SIZE) if relative else _whole(1)(node.CROP.SIZE),
        "INPUT.CROP.SIZE",
        node.CROP.SIZE,
        f"{'shares in (0, 1]' if relative else 'whole pixels'} as CROP.TYPE is {node.CROP.TYPE!r}",
    )


def _check_backbone(model: Any) -> None:
    names = [name for name, _ in BACKBONE_REGISTRY]
    _require(
        model.BACKBONE.NAME in names,
        "MODEL.BACKBONE.NAME",
        model.BACKBONE.NAME,
        f"one of {', '.join(map(repr, names))}",
    )
    depth = model.RESNETS.DEPTH
    width = 64 if depth in (18, 34) else 256
    _require(
        model.RESNETS.RES2_OUT_CHANNELS == width,
        "MODEL.RESNETS.RES2_OUT_CHANNELS",
        model.RESNETS.RES2_OUT_CHANNELS,
        f"{width}, as MODEL.RESNETS.DEPTH is {depth}",
    )
    if model.BACKBONE.NAME in FPN_BACKBONES:
        made, wanted = list(model.RESNETS.OUT_FEATURES), list(model.FPN.IN_FEATURES)
        _require(
            bool(wanted) and wanted == list(STAGES[-len(wanted) :]) and set(wanted) <= set(made),
            "MODEL.FPN.IN_FEATURES",
            wanted,
            f"neighbouring stages up to 'res5', all of them in MODEL.RESNETS.OUT_FEATURES {made}",
        )


def _check_features(model: Any) -> None:
    if model.BACKBONE.NAME == PLAIN_BACKBONE:
        made = sorted(model.RESNETS.OUT_FEATURES)
    elif model.BACKBONE.NAME in FPN_BACKBONES:
        above = FPN_BACKBONES[model.BACKBONE.NAME]
        made = [f"p{stage[3:]}" for stage in model.FPN.IN_FEATURES] + above
    else:  # of the user's own; the head's builder compares them
        return
    wanted = list(model.OneNet.IN_FEATURES)
    _require(
        bool(wanted) and wanted == [name for name in made if name in wanted],
        "MODEL.OneNet.IN_FEATURES",
        wanted,
        f"some of {made}, which is what {model.BACKBONE.NAME} makes with these settings, "
        "finest first",
    )


def _require(good: bool, key: str, value: Any, expected: str) -> None:
    if not good:
        raise ConfigError(f"{key} is {value!r}; expected {expected}")


Test = Callable[[Any], bool]
Rule = tuple[str, Test, str]


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _at_least(low: float) -> Test:
    return lambda value: _number(value) and value >= low


def _above(low: float) -> Test:
    return lambda value: _number(value) and value > low


def _whole(low: int, high: float = math.inf) -> Test:
    """A list of whole numbers from ``low`` to ``high``, not empty."""
    return lambda values: bool(values) and all(type(v) is int and low <= v <= high for v in values)


def _numbers(count: int, low: float = -math.inf) -> Test:
    """A list of ``count`` numbers above ``low``."""
    return lambda values: len(values) == count and all(map(_above(low), values))


def _up_to(most: int) -> tuple[Test, str]:
    return lambda value: 1 <= value <= most, f"a whole number above 0, {most} at most"


def _rows(values: Any) -> bool:
    """Lists of positive numbers, in a list; none empty."""
    return bool(values) and all(
        isinstance(row, Sequence) and bool(row) and all(_above(0)(v) and v <= _MOST for v in row)
        for row in values
    )


def _ranges(values: Any) -> bool:
    return all(
        isinstance(pair, Sequence)
        and len(pair) == 2
        and all(type(v) in (int, float) for v in pair)
        and pair[0] < pair[1]
        for pair in values
    )


def _texts(values: Any) -> bool:
    return all(isinstance(value, str) and bool(value) for value in values)


def _stages(values: Any) -> bool:
    return bool(values) and _texts(values) and len(values) == len(set(values) & set(STAGES))


def _rising(values: Any) -> bool:
    return not values or _whole(1)(values) and list(values) == sorted(set(values))


def _one_of(key: str, *choices: Any) -> Rule:
    return key, lambda value: value in choices, f"one of {', '.join(map(repr, choices))}"


def _each(section: str, keys: str, test: Test, expected: str) -> list[Rule]:
    return [(f"{section}.{key}", test, expected) for key in keys.split()]


_POSITIVE = (lambda value: value >= 1, "a whole number above 0")
_MOST = 1_000_000  # beyond any network that was trained; far larger numbers overflow
_SIZE, _LAYERS = _up_to(_MOST), _up_to(1000)
_ROWS = (_rows, f"lists of numbers above 0, {_MOST} at most")
_NATURAL = (lambda value: value >= 0, "a whole number from 0 on")
_NOT_NEGATIVE = (_at_least(0), "a number from 0 on")
_SHARE = (lambda value: 0 <= value <= 1, "a number from 0 to 1")
_TEXTS = (_texts, "a list of names")

_RULES: list[Rule] = [
    ("VERSION", lambda value: value == 2, "2, the version of Detectron2's config format"),
    ("OUTPUT_DIR", bool, "a folder"),
    (
        "MODEL.DEVICE",
        lambda value: re.fullmatch(r"cpu|cuda(:\d+)?", value) is not None,
        "'cpu', 'cuda' or 'cuda:N'",
    ),
    ("MODEL.PIXEL_MEAN", _numbers(3), "three numbers"),
    ("MODEL.PIXEL_STD", _numbers(3, low=0), "three numbers above 0"),
    ("MODEL.BACKBONE.FREEZE_AT", lambda value: 0 <= value <= 5, "a whole number from 0 to 5"),
    _one_of("MODEL.RESNETS.DEPTH", 18, 34, 50, 101),
    _one_of("MODEL.RESNETS.NORM", "BN", "FrozenBN", "SyncBN"),
    ("MODEL.RESNETS.OUT_FEATURES", _stages, f"some of {', '.join(STAGES)}"),
    ("MODEL.FPN.IN_FEATURES", *_TEXTS),
    ("MODEL.FPN.OUT_CHANNELS", *_SIZE),
    *_each("MODEL.ANCHOR_GENERATOR", "SIZES ASPECT_RATIOS", *_ROWS),
    ("MODEL.ANCHOR_GENERATOR.OFFSET", lambda value: 0 <= value < 1, "a number from 0 to below 1"),
    *_each("MODEL.OneNet", "NUM_CLASSES CONV_CHANNELS", *_SIZE),
    *_each("MODEL.OneNet", "NUM_CONV NUM_HEADS INFERENCE_HEADS", *_LAYERS),
    ("MODEL.OneNet.IN_FEATURES", *_TEXTS),
    _one_of("MODEL.OneNet.ACTIVATION", "relu", "gelu"),
    (
        "MODEL.OneNet.DECONV_CHANNEL",
        _whole(1, _MOST),
        f"a list of whole numbers above 0, {_MOST} at most",
    ),
    (
        "MODEL.OneNet.DECONV_KERNEL",
        lambda values: _whole(2)(values) and max(values) <= 4,
        "a list of kernel sizes 2, 3 or 4",
    ),
    _one_of("MODEL.OneNet.CONV_NORM", "GN", "BN"),
    ("MODEL.OneNet.OBJECT_SIZES_OF_INTEREST", _ranges, "pairs [low, high] in px with low < high"),
    _one_of("MODEL.OneNet.LOCATION_COST", "predicted", "predefined"),
    *_each(
        "MODEL.OneNet",
        "CLASS_COST GIOU_COST L1_COST CLASS_WEIGHT GIOU_WEIGHT L1_WEIGHT GAMMA",
        *_NOT_NEGATIVE,
    ),
    ("MODEL.OneNet.ALPHA", *_SHARE),
    ("MODEL.OneNet.PRIOR_PROB", lambda value: 0 < value < 1, "a number between 0 and 1"),
    ("MODEL.CenterNet.CHANNELS", *_SIZE),
    ("MODEL.CenterNet.PEAK_KERNEL", lambda value: value > 0 and value % 2 == 1, "an odd number"),
    *_each("MODEL.CenterNet", "SIZE_WEIGHT OFFSET_WEIGHT", *_NOT_NEGATIVE),
    *_each("MODEL.TORCHVISION", "SCORE_THRESH NMS_THRESH", *_SHARE),
    ("INPUT.MIN_SIZE_TRAIN", _whole(1), "a list of whole numbers above 0"),
    _one_of("INPUT.MIN_SIZE_TRAIN_SAMPLING", "choice", "range"),
    *_each("INPUT", "MAX_SIZE_TRAIN MAX_SIZE_TEST", *_POSITIVE),
    ("INPUT.MIN_SIZE_TEST", *_NATURAL),
    _one_of("INPUT.RANDOM_FLIP", "horizontal", "vertical", "none"),
    _one_of("INPUT.CROP.TYPE", "relative", "relative_range", "absolute", "absolute_range"),
    ("INPUT.CROP.SIZE", _numbers(2, low=0), "two numbers above 0: height and width"),
    _one_of("INPUT.FORMAT", "RGB", "BGR"),
    *_each("DATASETS", "TRAIN TEST", _texts, "a list of known names or ANNOTATIONS.json:FOLDER"),
    ("DATALOADER.NUM_WORKERS", *_NATURAL),
    _one_of("SOLVER.OPTIMIZER", "ADAMW", "SGD"),
    _one_of("SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR", "WarmupCosineLR"),
    _one_of("SOLVER.WARMUP_METHOD", "linear", "constant"),
    *_each("SOLVER", "MAX_ITER CHECKPOINT_PERIOD IMS_PER_BATCH", *_POSITIVE),
    ("SOLVER.BASE_LR", _above(0), "a number above 0"),
    *_each("SOLVER", "BASE_LR_END WEIGHT_DECAY BACKBONE_MULTIPLIER", *_NOT_NEGATIVE),
    ("SOLVER.MOMENTUM", lambda value: 0 <= value < 1, "a number from 0 to below 1"),
    ("SOLVER.GAMMA", _above(0), "a number above 0"),
    ("SOLVER.STEPS", _rising, "a list of rising whole numbers above 0"),
    ("SOLVER.WARMUP_FACTOR", *_SHARE),
    ("SOLVER.WARMUP_ITERS", *_NATURAL),
    _one_of("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "full_model", "norm", "value"),
    ("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", _above(0), "a number above 0"),
    ("SOLVER.CLIP_GRADIENTS.NORM_TYPE", lambda value: value > 0, "a number above 0, or .inf"),
    ("TEST.EVAL_PERIOD", *_NATURAL),
    ("TEST.DETECTIONS_PER_IMAGE", *_POSITIVE),
]
