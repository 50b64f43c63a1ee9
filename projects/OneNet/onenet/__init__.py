"""OneNet: one-stage object detection without NMS (arXiv 2012.05780)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import add_onenet_config, build_criterion, build_head, build_matcher
    from .losses import Criterion
    from .matcher import HungarianMatcher, MinCostMatcher
    from .model import OneNet
    from .structures import Detections, Matches, Predictions, Targets

__version__ = "0.1.0"

__all__ = [
    "Criterion",
    "Detections",
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

# Imported on first use, since onenet.runtime does without torch.
_MODULES = {
    "Criterion": "losses",
    "Detections": "structures",
    "HungarianMatcher": "matcher",
    "Matches": "structures",
    "MinCostMatcher": "matcher",
    "OneNet": "model",
    "Predictions": "structures",
    "Targets": "structures",
    "add_onenet_config": "config",
    "build_criterion": "config",
    "build_head": "config",
    "build_matcher": "config",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
