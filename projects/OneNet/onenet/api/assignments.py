"""Which sample each object of an image gets from a trained model; runs in the embedded engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from onenet.assignment.criterion import Criterion
from onenet.assignment.explain import Assignment, assign
from onenet.assignment.registry import PREDEFINED_COSTS
from onenet.baselines.queries import QueryDetector
from onenet.config.device import choose_device
from onenet.data.transforms import TrainTransform
from onenet.detector import DenseDetector
from onenet.errors import ConfigError, DatasetError
from onenet.lightning.build import build_detector
from onenet.structures import Targets


def build_onenet(cfg: Any) -> DenseDetector:
    """Build the config's model in evaluation mode, on its device.

    Raises:
        ConfigError: the model has no criterion that assigns by cost, or it has neither queries nor
            a predefined location cost of its head.
    """
    model = build_detector(cfg)
    if not isinstance(getattr(model, "criterion", None), Criterion):
        raise ConfigError(
            f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE!r} assigns no samples by "
            "cost; expected 'OneNet', or a network of queries such as 'SparseRCNN'"
        )
    if not isinstance(model, QueryDetector) and cfg.MODEL.OneNet.HEAD not in PREDEFINED_COSTS:
        raise ConfigError(
            f"MODEL.OneNet.HEAD {cfg.MODEL.OneNet.HEAD!r} has no predefined location cost; add one "
            f"to onenet.PREDEFINED_COSTS, which has {', '.join(PREDEFINED_COSTS)}"
        )
    return model.to(choose_device(cfg)).eval()


def to_input(cfg: Any, image: np.ndarray, targets: Targets) -> tuple[torch.Tensor, Targets]:
    """The model's input for an image, as in testing, with the objects inside the image.

    Args:
        image: (H, W, 3) uint8 RGB.
        targets: in px of ``image``.

    Returns:
        (3, h, w) uint8, and the targets in its px.

    Raises:
        DatasetError: no object lies in the image.
    """
    # Equals TestTransform, but takes boxes: with one size and no flip, nothing is random.
    transform = TrainTransform(
        min_sizes=[cfg.INPUT.MIN_SIZE_TEST], max_size=cfg.INPUT.MAX_SIZE_TEST, flip="none"
    )
    image = image if cfg.INPUT.FORMAT == "RGB" else image[..., ::-1]
    boxes, labels = targets.boxes.numpy(), targets.labels.numpy()
    image, boxes, labels = transform(image, boxes, labels, np.random.default_rng())
    if len(labels) == 0:
        raise DatasetError("no object lies inside the image: choose another image (--input)")
    inside = Targets(torch.from_numpy(boxes), torch.from_numpy(labels), image.shape[:2])
    return torch.from_numpy(image.transpose(2, 0, 1).copy()), inside


def assign_all(
    cfg: Any, model: DenseDetector, inputs: Sequence[tuple[torch.Tensor, Targets]]
) -> list[Assignment]:
    """The assignment of each input of :func:`to_input`."""
    predefined = None
    if not isinstance(model, QueryDetector):
        predefined = PREDEFINED_COSTS[cfg.MODEL.OneNet.HEAD](cfg).to(model.pixel_mean.device)
    matcher = model.criterion.matcher
    with torch.inference_mode():
        return [
            assign(model.predict([image]), targets, matcher, predefined)
            for image, targets in inputs
        ]
