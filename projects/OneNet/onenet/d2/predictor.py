"""Detections from a config and its weights, on Detectron2's backbones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.modeling import build_model
from torch import Tensor, nn

from onenet.config.build import prepare_inference
from onenet.inference.predictor import BasePredictor
from onenet.structures import Detections

from .config import config_errors, load_cfg, without_branch
from .dataset_mapper import ResizeShortestEdge
from .datasets import class_names, register_datasets
from .weights import fetch_weights, load_weights


def build_predictor(config_file: str, opts: Sequence[str] = ()) -> Predictor:
    """The predictor of a config file with overrides, ``KEY VALUE …``."""
    return Predictor(load_cfg(config_file, opts))


class Predictor(BasePredictor):
    """For the demo; Detectron2's ``DefaultPredictor`` works as well."""

    def load(self, cfg: Any) -> tuple[nn.Module, dict[str, Any]]:
        self._resize = ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
        with config_errors():
            model = build_model(without_branch(cfg))
        extras = load_weights(model, cfg.MODEL.WEIGHTS, detector=True)
        return prepare_inference(cfg, model), extras

    def locate(self, weights: str) -> Path:
        return Path(fetch_weights(weights))

    def resize(self, image: np.ndarray) -> np.ndarray:
        return self._resize.get_transform(image).apply_image(image)

    def detect(self, images: list[Tensor], sizes: list[tuple[int, int]]) -> list[Detections]:
        inputs = [
            {"image": image, "height": height, "width": width}
            for image, (height, width) in zip(images, sizes, strict=True)
        ]
        found = [output["instances"].to("cpu") for output in self.model(inputs)]
        return [Detections(f.pred_boxes.tensor, f.scores, f.pred_classes) for f in found]

    def names_of(self, dataset: str) -> list[str]:
        register_datasets([dataset])
        return class_names(dataset)
