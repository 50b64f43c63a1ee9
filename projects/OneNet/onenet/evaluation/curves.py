"""Curves over the score: precision, recall, F1 with its best threshold, and calibration."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BINS = 10  # of the reliability diagram, of equal width


@dataclass(frozen=True)
class ScoreCurve:
    """Precision, recall and F1 if the scores from a threshold on count; S different scores.

    Attributes:
        scores: (S,) the different scores, highest first.
        precision, recall, f1: (S,) in [0, 1]; recall and F1 are NaN without objects.
        objects: how many there are to find.
    """

    scores: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    objects: int

    @property
    def has_f1(self) -> bool:
        """Whether there are detections, and objects to find."""
        return len(self.f1) > 0 and self.objects > 0

    def at(self, threshold: float) -> tuple[float, float, float]:
        """Precision, recall and F1 at a threshold; precision is NaN if nothing reaches it."""
        count = int((self.scores >= threshold).sum())
        if not count:
            nothing = 0.0 if self.objects else float("nan")
            return float("nan"), nothing, nothing
        return tuple(float(v[count - 1]) for v in (self.precision, self.recall, self.f1))

    @property
    def best_threshold(self) -> float | None:
        """The threshold of the highest F1; ``None`` if no detection is right.

        It lies between the last score that counts and the next one, with as few digits as tell
        them apart. Where several thresholds share the highest F1, it is the highest of them.
        """
        if not self.has_f1 or not self.f1.max() > 0:
            return None
        last = int(self.f1.argmax())
        high = float(self.scores[last])
        low = float(self.scores[last + 1]) if last + 1 < len(self.scores) else min(high / 2, high)
        return _between(low, high)


def score_curve(scores: np.ndarray, true: np.ndarray, objects: int) -> ScoreCurve:
    """The curve of n detections.

    Args:
        scores: (n,) best first.
        true: (n,) bool, whether each finds an object.
        objects: how many there are to find.
    """
    # Detections of one score count together or not at all.
    last = np.flatnonzero(np.diff(scores, append=-np.inf))
    hits = np.cumsum(true)[last]
    count = last + 1
    unknown = np.full(len(last), np.nan)
    return ScoreCurve(
        scores=scores[last],
        precision=hits / count,
        recall=hits / objects if objects else unknown,
        f1=2 * hits / (count + objects) if objects else unknown,
        objects=objects,
    )


def _between(low: float, high: float) -> float:
    """The number between two scores with the fewest digits, near their middle; else ``high``."""
    middle = (low + high) / 2
    for digits in range(2, 17):
        rounded = round(middle, digits)
        if low < rounded < high:
            return rounded
    return high


@dataclass(frozen=True)
class Calibration:
    """How far scores are probabilities, in ``BINS`` bins of equal width over [0, 1].

    Attributes:
        counts: (BINS,) detections in each bin.
        scores: (BINS,) their mean score; NaN in an empty bin.
        precision: (BINS,) the part of them that finds an object; NaN in an empty bin.
        error: expected calibration error: the mean over all detections of the difference between
            the precision and the mean score of their bin; NaN without detections.
    """

    counts: np.ndarray
    scores: np.ndarray
    precision: np.ndarray
    error: float


def calibration(scores: np.ndarray, true: np.ndarray) -> Calibration | None:
    """Compare scores with how often they are right; ``None`` if a score is not in [0, 1].

    Args:
        scores: (n,).
        true: (n,) bool, whether each detection finds an object.
    """
    if len(scores) and not (scores.min() >= 0 and scores.max() <= 1):
        return None
    which = np.minimum((scores * BINS).astype(np.int64), BINS - 1)  # a score of 1 is in the last
    counts = np.bincount(which, minlength=BINS)
    with np.errstate(invalid="ignore"):  # empty bins
        mean_scores = np.bincount(which, scores, minlength=BINS) / counts
        precision = np.bincount(which, true, minlength=BINS) / counts
    if not len(scores):
        return Calibration(counts, mean_scores, precision, float("nan"))
    gaps = np.abs(precision - mean_scores)[counts > 0]
    error = float((gaps * counts[counts > 0]).sum() / len(scores))
    return Calibration(counts, mean_scores, precision, error)
