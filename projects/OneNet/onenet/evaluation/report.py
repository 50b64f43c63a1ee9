"""Scoring a data set's detections, writing them and saying what came out, for both engines."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from onenet.files import strict_json, write_whole

from .coco import OF_CLASS
from .duplicates import detections_per_object, duplicates_line
from .registry import Evaluator
from .results import finite
from .truth import has_objects

logger = logging.getLogger(__name__)
CLASSES_PER_LINE = 3
DUPLICATES = "duplicates"


def report(
    evaluator: Evaluator,
    name: str,
    truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    path: Path,
) -> dict[str, float]:
    """Score detections, log the metrics and write the results file. The first process calls this.

    Detections with NaN or infinity are left out, and a warning counts them.

    Args:
        name: of the data set.
        truth: see :func:`~.truth.counted`.
        results: detections in COCO's results format (:func:`~.results.to_coco`).
        path: for the results file.

    Returns:
        See :func:`score`; empty if there is nothing to find.

    Raises:
        WriteError: the results cannot be written; the metrics are in the log.
    """
    results = finite(name, results)
    metrics: dict[str, float] = {}
    told = f"{name} has no objects, so there is nothing to score"
    if has_objects(truth):
        metrics = score(evaluator, truth, results)
        told = tables(metrics)
        if not results:
            logger.warning("%s: not a single detection, so nothing is found", name)
    try:
        write_whole(path, strict_json(results).encode())
    finally:  # the metrics took long to compute
        logger.info(
            "%s: %d images, %d detections in %s\n%s",
            name,
            len(truth["images"]),
            len(results),
            path,
            told,
        )
    return {f"{evaluator.group}/{title}": value for title, value in metrics.items()}


def score(
    evaluator: Evaluator, truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    """The evaluator's metrics, and ``duplicates``.

    Args:
        truth: see :func:`~.truth.counted`.
        results: detections in COCO's results format; finite.

    Returns:
        By name: ``AP``, ``AP50`` … and ``AP-CLASS``; or CrowdHuman's ``AP``, ``mMR`` and
        ``Recall``, all 0…100, NaN where there is nothing to find. ``duplicates`` is at least 1,
        see :func:`~.duplicates.detections_per_object`.
    """
    metrics = evaluator.score(truth, results)
    return {**metrics, DUPLICATES: detections_per_object(truth["annotations"], results)}


def directions(evaluator: Evaluator, truth: Mapping[str, Any]) -> dict[str, bool]:
    """The metrics that :func:`report` gives for a data set, and whether lower is better.

    Args:
        truth: see :func:`~.truth.counted`.

    Returns:
        By name; empty if there is nothing to find.
    """
    if not has_objects(truth):
        return {}
    lower = (*evaluator.lower, DUPLICATES)
    return {f"{evaluator.group}/{name}": name in lower for name in score(evaluator, truth, [])}


def tables(metrics: Mapping[str, float]) -> str:
    """The metrics of :func:`score` as text: a table overall, one by class, and the duplicates."""
    overall = {
        name: f"{value:.2f}"
        for name, value in metrics.items()
        if name != DUPLICATES and not name.startswith(OF_CLASS)
    }
    parts = [_table([list(overall.values())], list(overall))]
    cells = [
        (name.removeprefix(OF_CLASS), f"{value:.2f}")
        for name, value in metrics.items()
        if name.startswith(OF_CLASS)
    ]
    if cells:
        columns = min(CLASSES_PER_LINE, len(cells))
        rows = [sum(cells[i : i + columns], ()) for i in range(0, len(cells), columns)]
        parts.append(_table(rows, ["class", "AP"] * columns))
    return "\n\n".join([*parts, duplicates_line(metrics[DUPLICATES])])


def _table(rows: list[Any], headers: Sequence[str]) -> str:
    align = ["left" if name == "class" else "right" for name in headers]
    # Cells stay text: a class may be named "007" or "1e3".
    return tabulate(rows, headers, tablefmt="pipe", colalign=align, disable_numparse=True)
