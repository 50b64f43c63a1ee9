"""OneNet: one-stage object detection without NMS (arXiv 2012.05780)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onenet.assignment.criterion import Criterion
    from onenet.assignment.matchers import HungarianMatcher, MinCostMatcher
    from onenet.config.build import add_onenet_config, build_criterion, build_head, build_matcher

    from .detector import OneNet
    from .structures import Detections, Matches, Predictions, Targets
    from .training.hooks import HOOK_REGISTRY, Hook

__version__ = "0.1.0"

__all__ = [
    "Criterion",
    "Detections",
    "HOOK_REGISTRY",
    "Hook",
    "HungarianMatcher",
    "Matches",
    "MinCostMatcher",
    "OneNet",
    "Predictions",
    "Targets",
    "add_onenet_config",
    "build_criterion",
    "build_head",
    "build_matcher",
]

# Imported on first use, since onenet.deploy.runtime does without torch.
_MODULES = {
    "Criterion": "assignment.criterion",
    "Detections": "structures",
    "HOOK_REGISTRY": "training.hooks",
    "Hook": "training.hooks",
    "HungarianMatcher": "assignment.matchers",
    "Matches": "structures",
    "MinCostMatcher": "assignment.matchers",
    "OneNet": "detector",
    "Predictions": "structures",
    "Targets": "structures",
    "add_onenet_config": "config.build",
    "build_criterion": "config.build",
    "build_head": "config.build",
    "build_matcher": "config.build",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
