"""Detections from a config and its weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from onenet.checkpoints.weights import load_weights, locate_weights
from onenet.config.build import prepare_inference
from onenet.config.device import choose_device
from onenet.data.dataset import CocoDetection
from onenet.data.sources import find_dataset
from onenet.inference.postprocess import to_image
from onenet.inference.predictor import BasePredictor
from onenet.structures import Detections

from .build import build_detector
from .config import load_cfg
from .datasets import build_test_transform


def build_predictor(config_file: str, opts: Sequence[str] = ()) -> Predictor:
    """The predictor of a config file with overrides, ``KEY VALUE …``."""
    return Predictor(load_cfg(config_file, opts))


class Predictor(BasePredictor):
    """On the embedded engine's backbones."""

    def set_up(self, cfg: Any) -> None:
        super().set_up(cfg)
        self._transform = build_test_transform(cfg)

    def load(self, cfg: Any) -> tuple[nn.Module, dict[str, Any]]:
        model = build_detector(cfg)
        extras = load_weights(model, cfg.MODEL.WEIGHTS, detector=True)
        return prepare_inference(cfg, model.to(choose_device(cfg))), extras

    def locate(self, weights: str) -> Path:
        return locate_weights(weights)

    def resize(self, image: np.ndarray) -> np.ndarray:
        return self._transform(image)

    def detect(self, images: list[Tensor], sizes: list[tuple[int, int]]) -> list[Detections]:
        return [
            to_image(found.to("cpu"), tuple(image.shape[-2:]), size)
            for found, image, size in zip(self.model(images), images, sizes, strict=True)
        ]

    def names_of(self, dataset: str) -> list[str]:
        return CocoDetection(find_dataset(dataset), need_annotations=False).class_names
