"""OneNet: one-stage object detection without NMS (arXiv 2012.05780).

Import public names from here: the modules behind them may move.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api.detections import ImageDetections
    from .api.detector import Detector, load
    from .api.runs import train
    from .assignment.costs import PredefinedAnchor, PredefinedPoint, PredictedLocation
    from .assignment.criterion import Criterion, OneToManyCriterion
    from .assignment.matchers import HungarianMatcher, Matcher, MinCostMatcher
    from .assignment.one_to_many import ExclusiveMatcher, TopKMatcher
    from .assignment.registry import (
        CRITERION_REGISTRY,
        LOCATION_COST_REGISTRY,
        MATCHER_REGISTRY,
        PREDEFINED_COSTS,
        build_criterion,
        build_matcher,
        matcher_options,
    )
    from .backbones.fpn import FPN
    from .backbones.mobilenet import MobileNetV3
    from .backbones.registry import BACKBONE_REGISTRY
    from .backbones.resnet import ResNet
    from .backbones.timm import TimmBackbone
    from .baselines.queries import QUERY_MATCHERS, QueryDetector
    from .baselines.registry import BASELINE_REGISTRY
    from .config.build import build_head
    from .config.keys import add_onenet_config
    from .data.augment.build import AUGMENTATION_REGISTRY
    from .data.augment.registry import Augmentation
    from .data.images import read_image
    from .deploy.runtime import OnnxPredictor
    from .detector import OneNet
    from .errors import OneNetError
    from .evaluation.registry import EVALUATOR_REGISTRY, Evaluator
    from .heads.base import Head
    from .heads.branch import Branch
    from .heads.deconv import DeconvHead
    from .heads.fcos import FCOSHead
    from .heads.registry import HEAD_REGISTRY
    from .heads.retinanet import RetinaNetHead
    from .structures import Detections, Matches, Predictions, TargetBatch, Targets
    from .training.hooks import HOOK_REGISTRY, Hook
    from .training.run_logger import LOGGER_REGISTRY, RunLogger

if sys.platform == "darwin" and "torch" not in sys.modules:
    # torch reads this when it is imported: what MPS, the Mac's GPU, lacks then runs on the CPU.
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")

__version__ = "0.1.0"

__all__ = [
    "AUGMENTATION_REGISTRY",
    "Augmentation",
    "BACKBONE_REGISTRY",
    "BASELINE_REGISTRY",
    "Branch",
    "CRITERION_REGISTRY",
    "Criterion",
    "DeconvHead",
    "Detections",
    "Detector",
    "EVALUATOR_REGISTRY",
    "Evaluator",
    "ExclusiveMatcher",
    "FCOSHead",
    "FPN",
    "HEAD_REGISTRY",
    "HOOK_REGISTRY",
    "Head",
    "Hook",
    "HungarianMatcher",
    "ImageDetections",
    "LOCATION_COST_REGISTRY",
    "LOGGER_REGISTRY",
    "MATCHER_REGISTRY",
    "Matcher",
    "Matches",
    "MinCostMatcher",
    "MobileNetV3",
    "OneNet",
    "OneNetError",
    "OneToManyCriterion",
    "OnnxPredictor",
    "PREDEFINED_COSTS",
    "PredefinedAnchor",
    "PredefinedPoint",
    "PredictedLocation",
    "Predictions",
    "QUERY_MATCHERS",
    "QueryDetector",
    "ResNet",
    "RetinaNetHead",
    "RunLogger",
    "TargetBatch",
    "Targets",
    "TimmBackbone",
    "TopKMatcher",
    "add_onenet_config",
    "build_criterion",
    "build_head",
    "build_matcher",
    "load",
    "matcher_options",
    "read_image",
    "train",
]

# Imported on first use, since OnnxPredictor and read_image work without torch.
_MODULES = {
    "AUGMENTATION_REGISTRY": "data.augment.build",
    "Augmentation": "data.augment.registry",
    "BACKBONE_REGISTRY": "backbones.registry",
    "BASELINE_REGISTRY": "baselines.registry",
    "Branch": "heads.branch",
    "CRITERION_REGISTRY": "assignment.registry",
    "Criterion": "assignment.criterion",
    "DeconvHead": "heads.deconv",
    "Detections": "structures",
    "Detector": "api.detector",
    "EVALUATOR_REGISTRY": "evaluation.registry",
    "Evaluator": "evaluation.registry",
    "ExclusiveMatcher": "assignment.one_to_many",
    "FCOSHead": "heads.fcos",
    "FPN": "backbones.fpn",
    "HEAD_REGISTRY": "heads.registry",
    "HOOK_REGISTRY": "training.hooks",
    "Head": "heads.base",
    "Hook": "training.hooks",
    "HungarianMatcher": "assignment.matchers",
    "ImageDetections": "api.detections",
    "LOCATION_COST_REGISTRY": "assignment.registry",
    "LOGGER_REGISTRY": "training.run_logger",
    "MATCHER_REGISTRY": "assignment.registry",
    "Matcher": "assignment.matchers",
    "Matches": "structures",
    "MinCostMatcher": "assignment.matchers",
    "MobileNetV3": "backbones.mobilenet",
    "OneNet": "detector",
    "OneNetError": "errors",
    "OneToManyCriterion": "assignment.criterion",
    "OnnxPredictor": "deploy.runtime",
    "PREDEFINED_COSTS": "assignment.registry",
    "PredefinedAnchor": "assignment.costs",
    "PredefinedPoint": "assignment.costs",
    "PredictedLocation": "assignment.costs",
    "Predictions": "structures",
    "QUERY_MATCHERS": "baselines.queries",
    "QueryDetector": "baselines.queries",
    "ResNet": "backbones.resnet",
    "RetinaNetHead": "heads.retinanet",
    "RunLogger": "training.run_logger",
    "TargetBatch": "structures",
    "Targets": "structures",
    "TimmBackbone": "backbones.timm",
    "TopKMatcher": "assignment.one_to_many",
    "add_onenet_config": "config.keys",
    "build_criterion": "assignment.registry",
    "build_head": "config.build",
    "build_matcher": "assignment.registry",
    "load": "api.detector",
    "matcher_options": "assignment.registry",
    "read_image": "data.images",
    "train": "api.runs",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
