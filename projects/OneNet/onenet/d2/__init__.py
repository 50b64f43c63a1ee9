"""OneNet for Detectron2: importing this registers meta-architectures, backbones, heads and
matchers.

``MODEL.META_ARCHITECTURE: "OneNet"``, or "CenterNet" or "SparseRCNN", then works in Detectron2's
own tools, once ``add_onenet_config(cfg)`` has added the keys.
"""

from onenet.assignment.registry import MATCHER_REGISTRY
from onenet.config.keys import add_onenet_config
from onenet.heads.registry import HEAD_REGISTRY

from . import backbones  # registers those that Detectron2 does not have
from .centernet import CenterNet
from .dataset_mapper import OneNetDatasetMapper
from .datasets import register_datasets
from .meta_arch import OneNet
from .sparse_rcnn import SparseRCNN
from .trainer import Trainer

__all__ = [
    "CenterNet",
    "HEAD_REGISTRY",
    "MATCHER_REGISTRY",
    "OneNet",
    "OneNetDatasetMapper",
    "SparseRCNN",
    "Trainer",
    "add_onenet_config",
    "backbones",
    "register_datasets",
]
