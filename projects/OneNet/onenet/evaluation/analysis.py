"""What a results file says about a detector: AP, curves, best thresholds, errors, calibration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from onenet.data.annotations import sorted_categories

from .coco import mean_precision, precisions, unique_names
from .curves import Calibration, ScoreCurve, calibration, score_curve
from .duplicates import detections_per_object
from .matching import Kind, Kinds, Matching, match

USUAL_THRESHOLD = 0.4  # the demo's, and what errors are counted at where there is no best one
IOUS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
SIZES = ("all", "small", "medium", "large")


@dataclass(frozen=True)
class Analysis:
    """A detector's results on a data set with B images and K classes.

    Attributes:
        class_names: by label; those that share a name have their category id behind it.
        images: the data set's image entries, in its order.
        crowds: number of crowd regions.
        precision: see :func:`~.coco.precisions`.
        matching: every detection and object at IoU 0.5.
        duplicates: see :func:`~.duplicates.detections_per_object`.
    """

    class_names: list[str]
    images: list[dict[str, Any]]
    crowds: int
    precision: np.ndarray
    matching: Matching
    duplicates: float

    @cached_property
    def curve(self) -> ScoreCurve:
        """Over all classes: their detections and objects counted together."""
        return self._curve(slice(None), len(self.matching.object_labels))

    @cached_property
    def curves(self) -> list[ScoreCurve]:
        """By label."""
        labels, counts = self.matching.labels, self.object_counts
        return [self._curve(labels == k, int(counts[k])) for k in range(len(self.class_names))]

    def _curve(self, rows: Any, objects: int) -> ScoreCurve:
        m = self.matching
        rows = np.arange(len(m.scores))[rows]
        rows = rows[~m.ignored[rows]]
        return score_curve(m.scores[rows], m.match[rows] >= 0, objects)

    @property
    def object_counts(self) -> np.ndarray:
        """(K,) objects of each class."""
        return np.bincount(self.matching.object_labels, minlength=len(self.class_names))

    @property
    def best_threshold(self) -> float | None:
        """Of the highest F1 over all classes; ``None`` if no detection is right."""
        return self.curve.best_threshold

    @property
    def threshold(self) -> float:
        """Where errors are counted: the best threshold, or else ``USUAL_THRESHOLD``."""
        best = self.best_threshold
        return USUAL_THRESHOLD if best is None else best

    @cached_property
    def kinds(self) -> Kinds:
        """Every detection and object at :attr:`threshold`."""
        return self.matching.kinds(self.threshold)

    def calibration(self, threshold: float | None = None) -> Calibration | None:
        """Of all detections that no crowd hides, or of those from a threshold on."""
        m = self.matching
        rows = ~m.ignored
        if threshold is not None:
            rows &= m.scores >= threshold
        return calibration(m.scores[rows], m.match[rows] >= 0)

    def ap(self, *, iou: float | None = None, label: int | None = None, size: str = "all") -> float:
        """COCO's AP in per cent, of a part where one is named; NaN without objects there."""
        part = self.precision[..., SIZES.index(size)]
        part = part if iou is None else part[IOUS.index(iou)][None]
        return mean_precision(part if label is None else part[:, :, label])

    def counts(self) -> dict[str, int]:
        """How many detections and objects there are of each kind at :attr:`threshold`."""
        kinds = self.kinds
        detections = np.bincount(kinds.detections, minlength=len(Kind))
        missed = int((kinds.objects == Kind.MISSED).sum())
        names = (Kind.FOUND, Kind.CONFUSED, Kind.DUPLICATE, Kind.FALSE, Kind.IGNORED)
        return {kind.name.lower(): int(detections[kind]) for kind in names} | {"missed": missed}

    def counts_by_class(self) -> list[dict[str, int]]:
        """The same for each label: objects found, confused and missed, detections false and so on.

        An object that is confused counts for its own class.
        """
        m, kinds, classes = self.matching, self.kinds, len(self.class_names)

        def count(labels: np.ndarray) -> np.ndarray:
            return np.bincount(labels, minlength=classes)

        parts = {
            kind.name.lower(): count(m.object_labels[kinds.objects == kind])
            for kind in (Kind.FOUND, Kind.CONFUSED, Kind.MISSED)
        } | {
            kind.name.lower(): count(m.labels[kinds.detections == kind])
            for kind in (Kind.DUPLICATE, Kind.FALSE)
        }
        return [{name: int(values[k]) for name, values in parts.items()} for k in range(classes)]

    @cached_property
    def errors_by_image(self) -> dict[str, np.ndarray]:
        """(B,) how many errors of each kind an image has, and ``found`` objects."""
        m, kinds = self.matching, self.kinds
        by_detection = {
            kind.name.lower(): np.bincount(
                m.images[kinds.detections == kind], minlength=m.image_count
            )
            for kind in (Kind.FOUND, Kind.CONFUSED, Kind.DUPLICATE, Kind.FALSE)
        }
        missed = m.object_images[kinds.objects == Kind.MISSED]
        return by_detection | {"missed": np.bincount(missed, minlength=m.image_count)}

    def worst_images(self, count: int) -> list[int]:
        """Indices of the images with the most errors, those with fewer objects found first."""
        by_kind = self.errors_by_image
        errors = sum(values for kind, values in by_kind.items() if kind != "found")
        order = np.lexsort((by_kind["found"], -errors))
        return [int(i) for i in order[:count] if errors[i]]

    def confusions(self, count: int) -> list[tuple[int, int, int]]:
        """The pairs of classes that are confused most: true label, detected label, times."""
        table = self.kinds.confusion[:-1, :-1].copy()
        np.fill_diagonal(table, 0)
        order = np.argsort(-table, axis=None, kind="stable")[:count]
        pairs = zip(*np.unravel_index(order, table.shape), strict=True)
        return [(int(a), int(b), int(table[a, b])) for a, b in pairs if table[a, b]]


def analyse(truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> Analysis:
    """Analyse the results of a data set.

    Args:
        truth: see :func:`~.truth.counted`; it may have no objects.
        results: detections in COCO's results format, finite; all count.
    """
    most = max(Counter(r["image_id"] for r in results).values(), default=0)
    return Analysis(
        class_names=unique_names(sorted_categories(dict(truth))),
        images=list(truth["images"]),
        crowds=sum(bool(a.get("iscrowd", 0)) for a in truth["annotations"]),
        precision=precisions(truth, results, most),
        matching=match(truth, results),
        duplicates=detections_per_object(truth["annotations"], results),
    )
