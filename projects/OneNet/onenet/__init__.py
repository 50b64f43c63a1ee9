"""OneNet: one-stage object detection without NMS (arXiv 2012.05780).

Import public names from here: the modules behind them may move.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .assignment.costs import PredefinedAnchor, PredefinedPoint, PredictedLocation
    from .assignment.criterion import Criterion
    from .assignment.matchers import HungarianMatcher, Matcher, MinCostMatcher
    from .backbones.resnet import FPN, ResNet
    from .config.build import add_onenet_config, build_criterion, build_head, build_matcher
    from .config.registries import HEAD_REGISTRY, MATCHER_REGISTRY
    from .data.images import read_image
    from .deploy.runtime import OnnxPredictor
    from .detector import OneNet
    from .errors import OneNetError
    from .heads.base import Head
    from .heads.deconv import DeconvHead
    from .heads.fcos import FCOSHead
    from .heads.retinanet import RetinaNetHead
    from .structures import Detections, Matches, Predictions, TargetBatch, Targets
    from .training.hooks import HOOK_REGISTRY, Hook

__version__ = "0.1.0"

__all__ = [
    "Criterion",
    "DeconvHead",
    "Detections",
    "FCOSHead",
    "FPN",
    "HEAD_REGISTRY",
    "HOOK_REGISTRY",
    "Head",
    "Hook",
    "HungarianMatcher",
    "MATCHER_REGISTRY",
    "Matcher",
    "Matches",
    "MinCostMatcher",
    "OneNet",
    "OneNetError",
    "OnnxPredictor",
    "PredefinedAnchor",
    "PredefinedPoint",
    "PredictedLocation",
    "Predictions",
    "ResNet",
    "RetinaNetHead",
    "TargetBatch",
    "Targets",
    "add_onenet_config",
    "build_criterion",
    "build_head",
    "build_matcher",
    "read_image",
]

# Imported on first use, since OnnxPredictor and read_image work without torch.
_MODULES = {
    "Criterion": "assignment.criterion",
    "DeconvHead": "heads.deconv",
    "Detections": "structures",
    "FCOSHead": "heads.fcos",
    "FPN": "backbones.resnet",
    "HEAD_REGISTRY": "config.registries",
    "HOOK_REGISTRY": "training.hooks",
    "Head": "heads.base",
    "Hook": "training.hooks",
    "HungarianMatcher": "assignment.matchers",
    "MATCHER_REGISTRY": "config.registries",
    "Matcher": "assignment.matchers",
    "Matches": "structures",
    "MinCostMatcher": "assignment.matchers",
    "OneNet": "detector",
    "OneNetError": "errors",
    "OnnxPredictor": "deploy.runtime",
    "PredefinedAnchor": "assignment.costs",
    "PredefinedPoint": "assignment.costs",
    "PredictedLocation": "assignment.costs",
    "Predictions": "structures",
    "ResNet": "backbones.resnet",
    "RetinaNetHead": "heads.retinanet",
    "TargetBatch": "structures",
    "Targets": "structures",
    "add_onenet_config": "config.build",
    "build_criterion": "config.build",
    "build_head": "config.build",
    "build_matcher": "config.build",
    "read_image": "data.images",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
