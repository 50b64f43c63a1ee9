"""Detections of single images from a config and its weights, on Detectron2's backbones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.modeling import build_model

from ..checkpoint import CheckpointError
from ..datasets import DatasetError
from ..structures import Detections
from .config import load_cfg
from .datasets import class_names, register_datasets
from .weights import load_weights


def build_predictor(config_file: str, opts: Sequence[str] = ()) -> Predictor:
    """The predictor of a config file with overrides, ``KEY VALUE …``."""
    return Predictor(load_cfg(config_file, opts))


class Predictor:
    """A trained detector for the demo; Detectron2's ``DefaultPredictor`` works as well.

    Args:
        cfg: its ``MODEL.WEIGHTS`` must be a checkpoint of the whole detector.

    Attributes:
        class_names: from the checkpoint, else from the data set in ``DATASETS.TEST`` if it is on
            this machine, else ``class 0``, ``class 1`` ….

    Raises:
        CheckpointError: no weights, or not this model's.
    """

    def __init__(self, cfg: Any) -> None:
        if not cfg.MODEL.WEIGHTS:
            raise CheckpointError(
                "MODEL.WEIGHTS is empty: give a trained checkpoint, "
                "--opts MODEL.WEIGHTS path/to/model.pth"
            )
        self.model = build_model(cfg).eval()
        extras = load_weights(self.model, cfg.MODEL.WEIGHTS, detector=True)
        self.class_names = extras.get("class_names") or _names(cfg)
        self.resize = T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
        self.bgr = cfg.INPUT.FORMAT == "BGR"

    @torch.inference_mode()
    def __call__(self, image: np.ndarray) -> Detections:
        """Detect objects.

        Args:
            image: (H, W, 3) uint8 RGB.

        Returns:
            At most ``TEST.DETECTIONS_PER_IMAGE`` of them in px of ``image``, on the CPU.
        """
        height, width = image.shape[:2]
        pixels = np.ascontiguousarray(image[..., ::-1]) if self.bgr else image
        pixels = self.resize.get_transform(pixels).apply_image(pixels)
        inputs = {
            "image": torch.from_numpy(pixels.transpose(2, 0, 1).copy()),
            "height": height,
            "width": width,
        }
        found = self.model([inputs])[0]["instances"].to("cpu")
        return Detections(found.pred_boxes.tensor, found.scores, found.pred_classes)


def _names(cfg: Any) -> list[str]:
    count = cfg.MODEL.OneNet.NUM_CLASSES
    for name in cfg.DATASETS.TEST:
        try:
            register_datasets([name])
            names = class_names(name)
        except DatasetError:
            continue
        if len(names) == count:
            return names
    return [f"class {i}" for i in range(count)]
