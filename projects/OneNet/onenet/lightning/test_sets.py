"""All test sets of a config. With several, metric names start with the set's name."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from onenet.checkpoints.weights import locate_weights
from onenet.data.dataset import CocoDetection
from onenet.evaluation.registry import choose_evaluator
from onenet.evaluation.report import directions
from onenet.evaluation.report_facts import Evaluated
from onenet.evaluation.results import RESULTS_FILE, results_folder, set_prefix
from onenet.evaluation.truth import read_truth
from onenet.training.validation import log_losses
from onenet.visualization.report_page import write_report

from .evaluate import evaluate, losses, names_of_losses
from .pictures import validation_pictures


def evaluate_all(
    cfg: Any, model: nn.Module, test_sets: list[CocoDetection]
) -> dict[str, float] | None:
    """Score a model on every test set.

    Returns:
        See :func:`~onenet.lightning.evaluate.evaluate`; ``None`` if there is nothing to score.
    """
    metrics: dict[str, float] = {}
    names = [dataset.source.name for dataset in test_sets]
    for dataset, name in zip(test_sets, names, strict=True):
        prefix = set_prefix(name, names)
        found = evaluate(cfg, model, dataset, results_folder(cfg.OUTPUT_DIR, name, names))
        metrics |= {prefix + title: value for title, value in (found or {}).items()}
    return metrics or None


def all_losses(
    cfg: Any, model: nn.Module, test_sets: list[CocoDetection], progress: float
) -> dict[str, float]:
    """:func:`~onenet.lightning.evaluate.losses` of every test set, which the log gets."""
    found: dict[str, float] = {}
    names = [dataset.source.name for dataset in test_sets]
    for dataset, name in zip(test_sets, names, strict=True):
        means = losses(cfg, model, dataset, progress)
        log_losses(name, means)
        found |= {set_prefix(name, names) + title: value for title, value in means.items()}
    return found


def all_directions(cfg: Any, model: nn.Module, test_sets: list[CocoDetection]) -> dict[str, bool]:
    """The metrics that an evaluation in training gives, and whether lower is better.

    The first process calls this.
    """
    names = [dataset.source.name for dataset in test_sets]
    found: dict[str, bool] = {}
    for dataset, name in zip(test_sets, names, strict=True):
        scored = directions(choose_evaluator(cfg), read_truth(dataset.source.json_file))
        if scored and cfg.TEST.LOSS:
            scored |= dict.fromkeys(names_of_losses(cfg, model, dataset), True)
        prefix = set_prefix(name, names)
        found |= {prefix + title: lower for title, lower in scored.items()}
    return found


def report_all(cfg: Any, test_sets: list[CocoDetection]) -> None:
    """Write the report of every test set beside its detections, which are there already."""
    names = [dataset.source.name for dataset in test_sets]
    weights = locate_weights(cfg.MODEL.WEIGHTS) if cfg.MODEL.WEIGHTS else None
    for dataset, name in zip(test_sets, names, strict=True):
        folder = results_folder(cfg.OUTPUT_DIR, name, names)
        evaluated = Evaluated(
            name=name,
            truth=read_truth(dataset.source.json_file),
            truth_file=dataset.source.json_file,
            results_file=folder / RESULTS_FILE,
            files=dataset.files,
            weights=weights,
        )
        write_report(evaluated, folder)


def draw_all(cfg: Any, model: nn.Module, test_sets: list[CocoDetection]) -> dict[str, np.ndarray]:
    """:func:`~onenet.lightning.pictures.validation_pictures` of every test set."""
    names = [dataset.source.name for dataset in test_sets]
    return {
        set_prefix(dataset.source.name, names) + title: picture
        for dataset in test_sets
        for title, picture in validation_pictures(cfg, model, dataset).items()
    }
