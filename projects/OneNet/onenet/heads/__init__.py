"""Heads: from feature maps to :class:`~onenet.structures.Predictions`."""

from .base import Head
from .centernet import CenterNetHead
from .fcos import FCOSHead
from .retinanet import RetinaNetHead

__all__ = ["CenterNetHead", "FCOSHead", "Head", "RetinaNetHead"]
