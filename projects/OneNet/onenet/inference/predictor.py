"""What the predictors of both engines share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from onenet.checkpoints.weights import AVERAGED
from onenet.data.arrays import check_images
from onenet.data.batching import group_by_shape
from onenet.errors import CheckpointError, DatasetError
from onenet.structures import Detections

from .batch_size import images_per_batch
from .tiles import TiledPrediction


class BasePredictor(TiledPrediction, ABC):
    """A trained detector, ready for images of any size.

    Args:
        cfg: its ``MODEL.WEIGHTS`` must be a checkpoint of the whole detector.

    Attributes:
        model: prepared as ``TEST.FUSE``, ``PRECISION`` and ``COMPILE`` say, on its device.
        trained_classes: class names in the checkpoint; empty if it has none.
        class_names: the same names; without them those of the data set in ``DATASETS.TEST`` if it
            is on this machine or COCO, otherwise ``class 0``, ``class 1`` ….
        ema: whether the weights are a moving average over training.
        weights: the file of ``MODEL.WEIGHTS``.

    Raises:
        CheckpointError: there are no weights, or they are not this model's.
        ConfigError: the device does not support the precision.
    """

    def __init__(self, cfg: Any) -> None:
        if not cfg.MODEL.WEIGHTS:
            raise CheckpointError(
                "MODEL.WEIGHTS is empty: give a trained checkpoint, "
                "--opts MODEL.WEIGHTS path/to/model.pth"
            )
        self.set_up(cfg)
        self.model, extras = self.load(cfg)
        self.weights = self.locate(cfg.MODEL.WEIGHTS)
        self.trained_classes = extras.get("class_names", [])
        self.class_names = self.trained_classes or self._names_from_data(cfg)
        if len(self.class_names) != cfg.MODEL.OneNet.NUM_CLASSES:
            raise CheckpointError(
                f"{cfg.MODEL.WEIGHTS} names {len(self.class_names)} classes, but "
                f"MODEL.OneNet.NUM_CLASSES is {cfg.MODEL.OneNet.NUM_CLASSES}"
            )
        self.ema = extras.get("weights") == AVERAGED

    @classmethod
    def around(cls, cfg: Any, model: nn.Module) -> BasePredictor:
        """The predictor of a model that has its weights and is prepared; it has no class names."""
        predictor = cls.__new__(cls)
        predictor.set_up(cfg)
        predictor.model = model
        return predictor

    def set_up(self, cfg: Any) -> None:
        """Take from the config how images are fed to the model."""
        self.bgr = cfg.INPUT.FORMAT == "BGR"
        self.images_per_batch = images_per_batch(cfg)
        self.tiles, self.tile_overlap = cfg.TEST.TILES, cfg.TEST.TILE_OVERLAP

    def __call__(self, image: np.ndarray) -> Detections:
        """Detect objects in one image, (H, W, 3) uint8 RGB; see :meth:`predict_batch`."""
        return self.predict_batch([image])[0]

    @torch.inference_mode()
    def predict_batch(self, images: Sequence[np.ndarray]) -> list[Detections]:
        """Detect objects in several images.

        Images of the same shape go through the network together, at most ``TEST.IMS_PER_BATCH``;
        the detections of an image do not depend on the others.

        Args:
            images: (H, W, 3) uint8 RGB each.

        Returns:
            For each image at most ``TEST.DETECTIONS_PER_IMAGE``, in its px, on the CPU.

        Raises:
            DatasetError: an image is something else; says what to do.
        """
        images = check_images(images)
        pixels = [self._to_tensor(image) for image in images]
        sizes = [tuple(image.shape[:2]) for image in images]
        found: dict[int, Detections] = {}
        shapes = (tuple(p.shape[-2:]) for p in pixels)
        for group in group_by_shape(shapes, self.images_per_batch):
            batch = self.detect([pixels[i] for i in group], [sizes[i] for i in group])
            found |= zip(group, batch, strict=True)
        return [found[i] for i in range(len(images))]

    def _to_tensor(self, image: np.ndarray) -> Tensor:
        ordered = np.ascontiguousarray(image[..., ::-1]) if self.bgr else image
        # A copy: Pillow's pixels are read-only.
        return torch.from_numpy(self.resize(ordered).copy()).permute(2, 0, 1)

    @abstractmethod
    def load(self, cfg: Any) -> tuple[nn.Module, dict[str, Any]]:
        """The prepared model with its weights, on its device, and what else the checkpoint has."""

    @abstractmethod
    def locate(self, weights: str) -> Path:
        """The file of ``MODEL.WEIGHTS``, which is on this machine once it is loaded."""

    @abstractmethod
    def resize(self, image: np.ndarray) -> np.ndarray:
        """An image (H, W, 3) uint8 at the size that ``INPUT`` sets for testing."""

    @abstractmethod
    def detect(self, images: list[Tensor], sizes: list[tuple[int, int]]) -> list[Detections]:
        """Detections in resized images, in px of the originals.

        Args:
            images: (3, h, w) uint8 each, in the model's channel order.
            sizes: (H, W) px of the originals.

        Returns:
            Clipped to the originals, on the CPU.
        """

    @abstractmethod
    def names_of(self, dataset: str) -> list[str]:
        """Class names of an entry of ``DATASETS.TEST``; ``DatasetError`` if it is not here."""

    def _names_from_data(self, cfg: Any) -> list[str]:
        count = cfg.MODEL.OneNet.NUM_CLASSES
        for dataset in cfg.DATASETS.TEST:
            try:
                names = self.names_of(dataset)
            except DatasetError:
                continue
            if len(names) == count:
                return list(names)
        if any(name.startswith("coco_") for name in cfg.DATASETS.TEST) and count == 80:
            return coco_names()
        return [f"class {i}" for i in range(count)]


def coco_names() -> list[str]:
    """COCO's 80 classes by label, without COCO's files: torchvision lists them by category id."""
    from torchvision.models.detection import FCOS_ResNet50_FPN_Weights

    listed = FCOS_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    return [name for name in listed if name not in ("__background__", "N/A")]
