"""OneNet: one-stage object detection without NMS (arXiv 2012.05780)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onenet.assignment.costs import PredictedLocation
    from onenet.assignment.criterion import Criterion
    from onenet.assignment.matchers import HungarianMatcher, MinCostMatcher
    from onenet.backbones.resnet import ResNet
    from onenet.config.build import add_onenet_config, build_criterion, build_head, build_matcher
    from onenet.config.registries import MATCHER_REGISTRY
    from onenet.data.images import read_image
    from onenet.deploy.runtime import OnnxPredictor
    from onenet.heads.deconv import CenterNetHead as DeconvHead

    from .detector import OneNet
    from .errors import OneNetError
    from .structures import Detections, Matches, Predictions, TargetBatch, Targets

__version__ = "0.1.0"

__all__ = [
    "Criterion",
    "DeconvHead",
    "Detections",
    "HungarianMatcher",
    "MATCHER_REGISTRY",
    "Matches",
    "MinCostMatcher",
    "OneNet",
    "OneNetError",
    "OnnxPredictor",
    "PredictedLocation",
    "Predictions",
    "ResNet",
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
    "DeconvHead": "heads.deconv:CenterNetHead",
    "Detections": "structures",
    "HungarianMatcher": "assignment.matchers",
    "MATCHER_REGISTRY": "config.registries",
    "Matches": "structures",
    "MinCostMatcher": "assignment.matchers",
    "OneNet": "detector",
    "OneNetError": "errors",
    "OnnxPredictor": "deploy.runtime",
    "PredictedLocation": "assignment.costs",
    "Predictions": "structures",
    "ResNet": "backbones.resnet",
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
    module, _, attribute = _MODULES[name].partition(":")
    return getattr(importlib.import_module(f".{module}", __name__), attribute or name)
