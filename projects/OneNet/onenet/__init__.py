"""OneNet: one-stage object detection without NMS (arXiv 2012.05780)."""

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
