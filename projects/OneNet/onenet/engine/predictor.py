"""Detections of single images from a config and its weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from onenet.checkpoint import load_weights
from onenet.datasets import find_dataset
from onenet.inference import to_image
from onenet.predictor import BasePredictor
from onenet.structures import Detections

from .config import load_cfg
from .data import build_test_transform
from .datasets import CocoDetection
from .detector import build_detector, choose_device


def build_predictor(config_file: str, opts: Sequence[str] = ()) -> Predictor:
    """The predictor of a config file with overrides, ``KEY VALUE …``."""
    return Predictor(load_cfg(config_file, opts))


class Predictor(BasePredictor):
    """On the embedded engine's backbones."""

    def load(self, cfg: Any) -> tuple[nn.Module, dict[str, Any]]:
        self.transform = build_test_transform(cfg)
        model = build_detector(cfg)
        extras = load_weights(model, cfg.MODEL.WEIGHTS, detector=True)
        return model.to(choose_device(cfg)).eval(), extras

    def detect(self, image: np.ndarray) -> Detections:
        pixels = torch.from_numpy(self.transform(image).transpose(2, 0, 1).copy())
        detections = self.model([pixels])[0].to("cpu")
        return to_image(detections, tuple(pixels.shape[-2:]), image.shape[:2])

    def names_of(self, dataset: str) -> list[str]:
        return CocoDetection(find_dataset(dataset)).class_names
