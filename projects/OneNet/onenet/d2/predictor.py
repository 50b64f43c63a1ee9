"""Detections of single images from a config and its weights, on Detectron2's backbones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from torch import nn

from ..predictor import BasePredictor
from ..structures import Detections
from .config import load_cfg
from .datasets import class_names, register_datasets
from .weights import load_weights


def build_predictor(config_file: str, opts: Sequence[str] = ()) -> Predictor:
    """The predictor of a config file with overrides, ``KEY VALUE …``."""
    return Predictor(load_cfg(config_file, opts))


class Predictor(BasePredictor):
    """For the demo; Detectron2's ``DefaultPredictor`` works as well."""

    def load(self, cfg: Any) -> tuple[nn.Module, dict[str, Any]]:
        self.resize = T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
        model = build_model(cfg).eval()
        return model, load_weights(model, cfg.MODEL.WEIGHTS, detector=True)

    def detect(self, image: np.ndarray) -> Detections:
        height, width = image.shape[:2]
        pixels = self.resize.get_transform(image).apply_image(image)
        inputs = {
            "image": torch.from_numpy(pixels.transpose(2, 0, 1).copy()),
            "height": height,
            "width": width,
        }
        found = self.model([inputs])[0]["instances"].to("cpu")
        return Detections(found.pred_boxes.tensor, found.scores, found.pred_classes)

    def names_of(self, dataset: str) -> list[str]:
        register_datasets([dataset])
        return class_names(dataset)
