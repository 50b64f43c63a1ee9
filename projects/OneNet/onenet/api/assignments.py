"""Which samples each object of an image gets from a trained model; runs in the embedded engine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from onenet.assignment.criterion import Criterion
from onenet.assignment.explain import Assignment, assign
from onenet.assignment.matchers import Matcher
from onenet.assignment.registry import PREDEFINED_COSTS, build_matcher
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
    (found,) = _assign_by(cfg, model, inputs, [model.criterion.matcher])
    return found


def compare_rules(
    cfg: Any,
    model: DenseDetector,
    inputs: Sequence[tuple[torch.Tensor, Targets]],
    names: Iterable[str],
) -> dict[str, list[Assignment]]:
    """What several rules do with the predictions of one model: by name, the assignment of each
    input of :func:`to_input`.

    Args:
        names: values of ``MODEL.OneNet.MATCHER``.

    Raises:
        ConfigError: an unknown name.
    """
    matchers = {}
    for name in names:
        named = cfg.clone()
        named.defrost()
        named.MODEL.OneNet.MATCHER = name
        matchers[name] = build_matcher(named).to(model.pixel_mean.device)
    return dict(zip(matchers, _assign_by(cfg, model, inputs, matchers.values()), strict=True))


@torch.inference_mode()
def _assign_by(
    cfg: Any,
    model: DenseDetector,
    inputs: Sequence[tuple[torch.Tensor, Targets]],
    matchers: Iterable[Matcher],
) -> list[list[Assignment]]:
    predefined = None
    if not isinstance(model, QueryDetector):
        predefined = PREDEFINED_COSTS[cfg.MODEL.OneNet.HEAD](cfg).to(model.pixel_mean.device)
    given = [(model.predict([image]), targets) for image, targets in inputs]
    return [[assign(*one, matcher, predefined) for one in given] for matcher in matchers]


@torch.inference_mode()
def positives_per_object(
    model: DenseDetector, inputs: Iterable[tuple[torch.Tensor, Targets]]
) -> float:
    """How many positive samples the model's rule gives an object, in the mean over all objects.

    Args:
        inputs: of :func:`to_input`.
    """
    positives = objects = 0
    for image, targets in inputs:
        targets = targets.to(model.pixel_mean.device)
        positives += len(model.criterion.matcher(model.predict([image]), [targets]))
        objects += len(targets)
    return positives / objects
