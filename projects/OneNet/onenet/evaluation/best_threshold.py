"""The threshold of best F1 that a report holds: finding it beside a model. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onenet.errors import OneNetError
from onenet.files import hash_of, read_json

REPORT_FILE = "report.json"
BEST = "best"  # the value of --confidence-threshold that asks for it


def find_report(model: Path) -> Path | None:
    """The ``report.json`` beside a model, or in ``inference`` there, where an evaluation writes it.

    Raises:
        OneNetError: there are several, of several test sets.
    """
    folder = model.parent
    for path in (folder / REPORT_FILE, folder / "inference" / REPORT_FILE):
        if path.is_file():
            return path
    several = sorted(folder.glob(f"inference/*/{REPORT_FILE}"))
    if len(several) > 1:
        raise OneNetError(
            f"{folder} has the reports of {len(several)} test sets: "
            f"{', '.join(map(str, several))}. Copy the one that counts to {folder / REPORT_FILE}"
        )
    return several[0] if several else None


def read_threshold(report: Path, class_names: Sequence[str], weights: Path | None = None) -> float:
    """The ``best_threshold`` of a report.

    Args:
        report: a ``report.json``.
        class_names: of the model, by label.
        weights: the model's file, if it is a checkpoint; a report that names other weights is
            refused.

    Raises:
        OneNetError: the file is not a report, is one of another model, or holds no threshold.
    """
    content = read_json(report, OneNetError)
    if not isinstance(content, dict) or "best_threshold" not in content:
        raise OneNetError(f"{report} is not a report of an evaluation: it has no best_threshold")
    digest = _digest(content)
    if weights is None or digest is None:
        names = content.get("class_names")
        if not isinstance(names, list) or set(map(str, names)) != set(class_names):
            raise OneNetError(
                f"{report} is the report of a model with other classes: {names!r:.200}; this one "
                f"has {list(class_names)!r:.200}"
            )
    elif digest != hash_of(weights):
        raise OneNetError(
            f"{report} is the report of other weights ({content['weights'].get('file')}) than "
            f"{weights}. {advice(weights)}"
        )
    threshold = content["best_threshold"]
    if threshold is None:
        raise OneNetError(
            f"{report} holds no best threshold, since no detection was right: give "
            "--confidence-threshold as a number"
        )
    if type(threshold) not in (int, float) or not 0 <= threshold <= 1:
        raise OneNetError(f"{report}: best_threshold must be from 0 to 1, got {threshold!r:.60}")
    return float(threshold)


def best_threshold(model: Path, class_names: Sequence[str], *, checkpoint: bool) -> float:
    """The threshold of best F1 of a model, from the report beside it.

    Args:
        model: a checkpoint, or an exported file.
        class_names: of the model, by label.
        checkpoint: whether it is a checkpoint, which the report names.

    Raises:
        OneNetError: no report, or see :func:`read_threshold`; says what to run.
    """
    report = find_report(model)
    if report is None:
        where = f"{model.parent} and its folder inference have no {REPORT_FILE}"
        if checkpoint:
            raise OneNetError(f"no best threshold is known of {model}: {where}. {advice(model)}")
        raise OneNetError(
            f"no best threshold is known of {model}: it was exported without one, and {where}. "
            "Evaluate its weights with train_net.py --eval-only --report, then export again: "
            f"tools/export.py takes the {REPORT_FILE} beside the weights, or --report FILE"
        )
    return read_threshold(report, class_names, model if checkpoint else None)


def advice(weights: Path) -> str:
    """What to run to get the threshold of a checkpoint."""
    return (
        "Run train_net.py --config-file … --eval-only --report "
        f"MODEL.WEIGHTS {weights} OUTPUT_DIR {weights.parent}"
    )


def _digest(content: dict[str, Any]) -> str | None:
    weights = content.get("weights")
    return weights.get("sha256") if isinstance(weights, dict) else None
