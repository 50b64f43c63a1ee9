"""Detections of single images from a config and its weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from onenet.checkpoint import CheckpointError, load_weights
from onenet.datasets import DatasetError, find_dataset
from onenet.inference import to_image
from onenet.structures import Detections

from .config import load_cfg
from .data import build_test_transform
from .datasets import CocoDetection
from .detector import build_detector, choose_device


def build_predictor(config_file: str, opts: Sequence[str] = ()) -> Predictor:
    """The predictor of a config file with overrides, ``KEY VALUE …``."""
    return Predictor(load_cfg(config_file, opts))


class Predictor:
    """A trained detector, ready for images of any size.

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
        self.model = build_detector(cfg)
        extras = load_weights(self.model, cfg.MODEL.WEIGHTS, detector=True)
        self.model.to(choose_device(cfg)).eval()
        self.class_names = extras.get("class_names") or _names_from_data(cfg)
        self.transform = build_test_transform(cfg)
        self.bgr = cfg.INPUT.FORMAT == "BGR"

    @torch.inference_mode()
    def __call__(self, image: np.ndarray) -> Detections:
        """Detect objects.

        Args:
            image: (H, W, 3) uint8 RGB.

        Returns:
            At most ``TEST.DETECTIONS_PER_IMAGE`` of them in px of ``image``, on the CPU.
        """
        resized = self.transform(np.ascontiguousarray(image[..., ::-1]) if self.bgr else image)
        pixels = torch.from_numpy(resized.transpose(2, 0, 1).copy())
        detections = self.model([pixels])[0].to("cpu")
        return to_image(detections, tuple(pixels.shape[-2:]), image.shape[:2])


def _names_from_data(cfg: Any) -> list[str]:
    count = cfg.MODEL.OneNet.NUM_CLASSES
    for name in cfg.DATASETS.TEST:
        try:
            names = CocoDetection(find_dataset(name)).class_names
        except DatasetError:
            continue
        if len(names) == count:
            return names
    return [f"class {i}" for i in range(count)]
