"""Detections from a config and its weights, on Detectron2's backbones."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from torch import Tensor, nn

from onenet.config.build import prepare_inference
from onenet.inference.predictor import BasePredictor
from onenet.inference.tiles import tiles_line
from onenet.structures import Detections

from .config import config_errors, load_cfg, without_branch
from .dataset_mapper import ResizeShortestEdge
from .datasets import class_names, register_datasets
from .weights import fetch_weights, load_weights

logger = logging.getLogger(__name__)


def build_predictor(config_file: str, opts: Sequence[str] = ()) -> Predictor:
    """The predictor of a config file with overrides, ``KEY VALUE …``."""
    return Predictor(load_cfg(config_file, opts))


class Predictor(BasePredictor):
    """For the demo; Detectron2's ``DefaultPredictor`` works as well."""

    def set_up(self, cfg: Any) -> None:
        super().set_up(cfg)
        self._resize = ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)

    def load(self, cfg: Any) -> tuple[nn.Module, dict[str, Any]]:
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


class TiledModel(nn.Module):
    """A prepared model that detects in the tiles of images which no loader has resized.

    Args:
        cfg: its ``TEST.TILES`` is not 0.
        model: takes and gives what Detectron2's detectors do.
    """

    def __init__(self, cfg: Any, model: nn.Module) -> None:
        super().__init__()
        self.cfg, self.model = cfg, model
        self.predictor = Predictor.around(cfg, model)
        self.merged = 0
        self.training = model.training

    def forward(self, inputs: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        return [{"instances": self._detect(one["image"])} for one in inputs]

    def _detect(self, image: Tensor) -> Instances:
        pixels = image.permute(1, 2, 0).cpu().numpy()
        found = self.predictor.predict_tiles(pixels[..., ::-1] if self.predictor.bgr else pixels)
        self.merged += found.merged
        return Instances(
            pixels.shape[:2],
            pred_boxes=Boxes(torch.from_numpy(found.boxes)),
            scores=torch.from_numpy(found.scores),
            pred_classes=torch.from_numpy(found.labels),
        )

    def log(self) -> None:
        """Log how many boxes were merged, over all processes, which all call this."""
        merged = sum(comm.gather(self.merged))
        if comm.is_main_process():
            logger.info(tiles_line(self.cfg, merged))
