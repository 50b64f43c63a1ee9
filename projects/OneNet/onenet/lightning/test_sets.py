"""All test sets of a config; more than one put their names before what is told of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from onenet.data.dataset import CocoDetection

from .evaluate import evaluate
from .pictures import validation_pictures


def _prefix(dataset: CocoDetection, test_sets: list[CocoDetection]) -> str:
    return dataset.source.name.replace("/", "_") + "/" if len(test_sets) > 1 else ""


def evaluate_all(
    cfg: Any, model: nn.Module, test_sets: list[CocoDetection]
) -> dict[str, float] | None:
    """Score a model on every test set.

    Returns:
        See :func:`~onenet.lightning.evaluate.evaluate`; ``None`` without test sets, too.
    """
    metrics: dict[str, float] = {}
    for dataset in test_sets:
        prefix = _prefix(dataset, test_sets)
        folder = Path(cfg.OUTPUT_DIR) / "inference" / prefix
        found = evaluate(cfg, model, dataset, folder)
        metrics.update({prefix + name: value for name, value in (found or {}).items()})
    return metrics or None


def draw_all(cfg: Any, model: nn.Module, test_sets: list[CocoDetection]) -> dict[str, np.ndarray]:
    """:func:`~onenet.lightning.pictures.validation_pictures` of every test set."""
    return {
        _prefix(dataset, test_sets) + name: picture
        for dataset in test_sets
        for name, picture in validation_pictures(cfg, model, dataset).items()
    }
