"""What the predictors of both engines have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from torch import nn

from .checkpoint import CheckpointError
from .datasets import DatasetError
from .structures import Detections


class BasePredictor(ABC):
    """A trained detector, ready for images of any size.

    Args:
        cfg: its ``MODEL.WEIGHTS`` must be a checkpoint of the whole detector.

    Attributes:
        model: in evaluation mode, on its device.
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
        self.model, extras = self.load(cfg)
        self.class_names = extras.get("class_names") or self._names_from_data(cfg)
        self.bgr = cfg.INPUT.FORMAT == "BGR"

    @torch.inference_mode()
    def __call__(self, image: np.ndarray) -> Detections:
        """Detect objects.

        Args:
            image: (H, W, 3) uint8 RGB.

        Returns:
            At most ``TEST.DETECTIONS_PER_IMAGE`` of them in px of ``image``, on the CPU.
        """
        return self.detect(np.ascontiguousarray(image[..., ::-1]) if self.bgr else image)

    @abstractmethod
    def load(self, cfg: Any) -> tuple[nn.Module, dict[str, Any]]:
        """The model with its weights, and what else the checkpoint holds."""

    @abstractmethod
    def detect(self, image: np.ndarray) -> Detections:
        """Detections in an image of the model's channel order; see ``__call__``."""

    @abstractmethod
    def names_of(self, dataset: str) -> list[str]:
        """Class names of an entry of ``DATASETS.TEST``; a ``DatasetError`` if it is not here."""

    def _names_from_data(self, cfg: Any) -> list[str]:
        count = cfg.MODEL.OneNet.NUM_CLASSES
        for dataset in cfg.DATASETS.TEST:
            try:
                names = self.names_of(dataset)
            except DatasetError:
                continue
            if len(names) == count:
                return list(names)
        return [f"class {i}" for i in range(count)]
