"""What ``report.json`` holds: the figures of an evaluation's report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onenet.data.annotations import sorted_categories
from onenet.files import hash_of

from .analysis import IOUS, SIZES, USUAL_THRESHOLD, Analysis


@dataclass(frozen=True)
class Evaluated:
    """What a report is about.

    Attributes:
        name: of the data set.
        truth: see :func:`~onenet.evaluation.truth.counted`.
        truth_file: the data set's COCO file, for messages and the page.
        results_file: detections in COCO's results format.
        files: the image of each id.
        weights: the checkpoint that made the results; ``None`` if it is not known.
    """

    name: str
    truth: Mapping[str, Any]
    truth_file: Path
    results_file: Path
    files: Mapping[int, Path]
    weights: Path | None = None


def summary(analysis: Analysis) -> str:
    """What an analysis says, in a line."""
    usual = analysis.curve.at(USUAL_THRESHOLD)[2]
    if not len(analysis.matching.object_labels):
        return "The data set has no objects, so there is no best threshold"
    if analysis.best_threshold is None:
        return "No detection is right, so there is no best threshold"
    return (
        f"The best F1 is {analysis.curve.at(analysis.threshold)[2]:.3f}, at a confidence "
        f"threshold of {analysis.threshold:g}; at {USUAL_THRESHOLD}, the demo's default, it is "
        f"{usual:.3f}"
    )


def report_facts(
    analysis: Analysis, evaluated: Evaluated, missing: Sequence[str], worst: int
) -> dict[str, Any]:
    """The content of ``report.json``; docs/report.md describes it. NaN is still NaN.

    Args:
        missing: the images of the data set that are not on the disk.
        worst: how many images with the most errors are listed.
    """
    m = analysis.matching
    precision, recall, f1 = analysis.curve.at(analysis.threshold)
    of_all, of_shown = analysis.calibration(), analysis.calibration(analysis.threshold)
    weights = evaluated.weights
    return {
        "best_threshold": analysis.best_threshold,
        "class_names": [c["name"] for c in sorted_categories(dict(evaluated.truth))],
        "weights": weights and {"file": str(weights), "sha256": hash_of(weights)},
        "data_set": {
            "name": evaluated.name,
            "images": m.image_count,
            "objects": len(m.object_labels),
            "crowd_regions": analysis.crowds,
            "missing_images": list(missing),
        },
        "results": {"file": str(evaluated.results_file), "detections": len(m.scores)},
        "threshold": analysis.threshold,
        "f1": f1,
        "precision": precision,
        "recall": recall,
        "f1_at_usual_threshold": analysis.curve.at(USUAL_THRESHOLD)[2],
        "usual_threshold": USUAL_THRESHOLD,
        "ap": analysis.ap(),
        "ap_by_iou": {f"{iou:.2f}": analysis.ap(iou=iou) for iou in IOUS},
        "ap_by_size": {size: analysis.ap(size=size) for size in SIZES[1:]},
        "duplicates": analysis.duplicates,
        "calibration_error": None if of_all is None else of_all.error,
        "calibration_error_from_threshold": None if of_shown is None else of_shown.error,
        "counts": analysis.counts(),
        "confusion_matrix": analysis.kinds.confusion.tolist(),
        "classes": _class_rows(analysis),
        "worst_images": [
            {"image_id": analysis.images[i]["id"], **errors_of(analysis, i)}
            for i in analysis.worst_images(worst)
        ],
    }


def _class_rows(analysis: Analysis) -> list[dict[str, Any]]:
    rows = []
    counts = analysis.counts_by_class()
    for k, name in enumerate(analysis.class_names):
        curve = analysis.curves[k]
        best = curve.best_threshold
        precision, recall, f1 = curve.at(analysis.threshold)
        rows.append(
            {
                "name": name,
                "objects": int(analysis.object_counts[k]),
                "ap": analysis.ap(label=k),
                "ap50": analysis.ap(label=k, iou=0.5),
                "ap75": analysis.ap(label=k, iou=0.75),
                "ap_by_size": {size: analysis.ap(label=k, size=size) for size in SIZES[1:]},
                "best_threshold": best,
                "best_f1": math.nan if best is None else curve.at(best)[2],
                "precision": precision,
                "recall": recall,
                "f1": f1,
                **counts[k],
            }
        )
    return rows


def errors_of(analysis: Analysis, index: int) -> dict[str, int]:
    """How many errors of each kind an image has, and ``found`` objects, by its index."""
    return {kind: int(values[index]) for kind, values in analysis.errors_by_image.items()}
