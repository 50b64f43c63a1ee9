"""OneNet: one-stage object detection without NMS (arXiv 2012.05780)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .assignment.criterion import Criterion
    from .assignment.matchers import HungarianMatcher, Matcher, MinCostMatcher
    from .assignment.registry import (
        CRITERION_REGISTRY,
        LOCATION_COST_REGISTRY,
        MATCHER_REGISTRY,
        PREDEFINED_COSTS,
        build_criterion,
        build_matcher,
        matcher_options,
    )
    from .backbones.registry import BACKBONE_REGISTRY
    from .baselines.registry import BASELINE_REGISTRY
    from .config.build import build_head
    from .config.keys import add_onenet_config
    from .detector import OneNet
    from .evaluation.registry import EVALUATOR_REGISTRY, Evaluator
    from .heads.registry import HEAD_REGISTRY
    from .structures import Detections, Matches, Predictions, TargetBatch, Targets
    from .training.hooks import HOOK_REGISTRY, Hook

__version__ = "0.1.0"

__all__ = [
    "BACKBONE_REGISTRY",
    "BASELINE_REGISTRY",
    "CRITERION_REGISTRY",
    "EVALUATOR_REGISTRY",
    "HEAD_REGISTRY",
    "LOCATION_COST_REGISTRY",
    "MATCHER_REGISTRY",
    "PREDEFINED_COSTS",
    "Criterion",
    "Detections",
    "Evaluator",
    "HOOK_REGISTRY",
    "Hook",
    "HungarianMatcher",
    "Matcher",
    "Matches",
    "MinCostMatcher",
    "OneNet",
    "Predictions",
    "TargetBatch",
    "Targets",
    "add_onenet_config",
    "build_criterion",
    "build_head",
    "build_matcher",
    "matcher_options",
]

# Imported on first use, since onenet.deploy.runtime does without torch.
_MODULES = {
    "BACKBONE_REGISTRY": "backbones.registry",
    "BASELINE_REGISTRY": "baselines.registry",
    "CRITERION_REGISTRY": "assignment.registry",
    "EVALUATOR_REGISTRY": "evaluation.registry",
    "HEAD_REGISTRY": "heads.registry",
    "LOCATION_COST_REGISTRY": "assignment.registry",
    "MATCHER_REGISTRY": "assignment.registry",
    "PREDEFINED_COSTS": "assignment.registry",
    "Criterion": "assignment.criterion",
    "Detections": "structures",
    "Evaluator": "evaluation.registry",
    "HOOK_REGISTRY": "training.hooks",
    "Hook": "training.hooks",
    "HungarianMatcher": "assignment.matchers",
    "Matcher": "assignment.matchers",
    "Matches": "structures",
    "MinCostMatcher": "assignment.matchers",
    "OneNet": "detector",
    "Predictions": "structures",
    "TargetBatch": "structures",
    "Targets": "structures",
    "add_onenet_config": "config.keys",
    "build_criterion": "assignment.registry",
    "build_head": "config.build",
    "build_matcher": "assignment.registry",
    "matcher_options": "assignment.registry",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
