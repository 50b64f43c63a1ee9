"""The plots of an evaluation's report, as SVG that takes the text colour of the page around it."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from onenet.evaluation.analysis import IOUS, USUAL_THRESHOLD, Analysis
from onenet.evaluation.curves import BINS

from .canvas import plain_text

# Colours that are seen on white and on black.
BLUE, GREEN, RED, ORANGE, PURPLE = "#3b82c4", "#2e9e5b", "#d1495b", "#e07b39", "#8e63c7"
GREY = "#8a8a8a"
_LINES = (BLUE, ORANGE, GREEN, RED, PURPLE, "#2a9d9d", "#9b6b43", "#d4679c")
# Drawn in this colour, which nothing else has, and then replaced by that of the page's text.
_INK = "#010203"
_STYLE = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "onenet",  # equal reports are equal files
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.facecolor": "none",
    "legend.framealpha": 0.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GREY,
    "grid.alpha": 0.25,
}
_STEPS = {"drawstyle": "steps-post"}  # a value holds down from each score to the next
_POINTS = 500
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
LONGEST = 24  # characters of a class name in a plot
MOST_CELLS = 100  # classes of a confusion matrix
_NUMBERED = 12  # classes up to which its cells hold numbers


def short(name: str) -> str:
    """A class name for a plot, shortened, without meaning to matplotlib."""
    return plain_text(name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…")


def precision_recall(analysis: Analysis) -> str:
    """Precision against recall at IoU 0.5: every class, and their mean."""
    curves = analysis.precision[0, ..., 0].T  # classes × recalls
    known = [k for k, curve in enumerate(curves) if curve.max() > -1]
    recall = np.linspace(0, 1, curves.shape[1])
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure()
        _by_class(axes, analysis, [(k, recall, curves[k]) for k in known])
        if len(known) > 1:
            mean = curves[known].mean(axis=0)
            axes.plot(recall, mean, color=_INK, linewidth=2.5, label="mean of the classes")
        axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
        _legend(axes, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2)
        return _svg(figure)


def f1_by_threshold(analysis: Analysis) -> str:
    """F1 against the threshold: every class and over all, with the best and the usual threshold."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure()
        lines = [(k, c.scores, c.f1) for k, c in enumerate(analysis.curves) if c.has_f1]
        _by_class(axes, analysis, lines, **_STEPS)
        whole = analysis.curve
        if len(lines) > 1:
            style = {"color": _INK, "linewidth": 2.5, "label": "over all", **_STEPS}
            axes.plot(*_thinned(whole.scores, whole.f1), **style)
        best = analysis.best_threshold
        if best is not None:
            axes.axvline(best, color=RED, linewidth=1.5, label=f"best threshold {best:g}")
        if best != USUAL_THRESHOLD:
            style = {"color": GREY, "linestyle": "--", "linewidth": 1.5}
            axes.axvline(USUAL_THRESHOLD, **style, label=f"{USUAL_THRESHOLD}, the demo's default")
        low, high = min([0.0, *whole.scores[-1:]]), max([1.0, *whole.scores[:1]])
        axes.set(xlabel="confidence threshold", ylabel="F1", xlim=(low, high), ylim=(0, 1.02))
        _legend(axes, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2)
        return _svg(figure)


def ap_by_iou(analysis: Analysis) -> str:
    """AP at each IoU threshold, over all classes."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure()
        values = [analysis.ap(iou=iou) for iou in IOUS]
        bars = axes.bar(range(len(IOUS)), np.nan_to_num(values), color=BLUE, width=0.7)
        axes.bar_label(bars, [f"{v:.1f}" for v in values], padding=2, fontsize=9)
        axes.set_xticks(range(len(IOUS)), [f"{iou:.2f}" for iou in IOUS])
        axes.grid(False, axis="x")
        axes.set(xlabel="IoU that a detection needs", ylabel="AP", ylim=(0, 105))
        return _svg(figure)


def reliability(analysis: Analysis) -> str | None:
    """The reliability diagram; ``None`` if scores are not in [0, 1] or there is no detection."""
    found = analysis.calibration()
    if found is None or not found.counts.sum():
        return None
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure()
        middles = (np.arange(BINS) + 0.5) / BINS
        axes.bar(middles, np.nan_to_num(found.precision), 0.9 / BINS, color=BLUE)
        for x, count in zip(middles, found.counts, strict=True):
            axes.text(x, 1.04, f"{count:,}", ha="center", fontsize=8)
        style = {"color": GREY, "linestyle": "--"}
        axes.plot([0, 1], [0, 1], **style, label="perfect calibration")
        axes.plot(found.scores, found.precision, "o", color=ORANGE, label="at the bin's mean score")
        axes.set(xlabel="score", ylabel="part that is right", xlim=(0, 1), ylim=(0, 1.1))
        _legend(axes, loc="upper left", bbox_to_anchor=(0, 0.93))
        return _svg(figure)


def confusion_matrix(analysis: Analysis) -> tuple[str, int]:
    """The confusion matrix, each row coloured by its shares.

    Returns:
        The plot, and how many classes it puts together as "other classes": beyond ``MOST_CELLS``,
        those that are confused least.
    """
    table, names, left_out = _fold(analysis.kinds.confusion, analysis.class_names)
    names = [short(name) for name in names]
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    diagonal = np.eye(len(table), dtype=bool)
    cell = 0.5 if len(table) <= _NUMBERED + 1 else 0.16
    side = max(2.0, cell * len(table))
    with matplotlib.rc_context({**_STYLE, "axes.grid": False}):
        figure = Figure(figsize=(side, side))
        axes = figure.add_axes((0, 0, 1, 1))  # what is written around it is added when saving
        # What is right in one colour, what is wrong in another; the stronger, the more of its row.
        for hidden, color in ((~diagonal, BLUE), (diagonal, RED)):
            colors = LinearSegmentedColormap.from_list("", [f"{color}00", f"{color}ff"])
            axes.imshow(np.ma.masked_array(shares, hidden), colors, vmin=0, vmax=1)
        if len(table) <= _NUMBERED + 1:
            for (row, column), count in np.ndenumerate(table):
                if count:
                    style = {"ha": "center", "va": "center", "fontsize": 9 if count < 1e4 else 7}
                    axes.text(column, row, f"{count}", **style)
        size = 9 if len(table) <= _NUMBERED + 1 else 7
        ticks = range(len(table))
        axes.set_xticks(ticks, [*names, "missed"], rotation=90, fontsize=size)
        axes.set_yticks(ticks, [*names, "false and duplicate"], fontsize=size)
        axes.xaxis.set_ticks_position("top")
        axes.xaxis.set_label_position("top")
        axes.set(xlabel="detected as", ylabel="object is")
        axes.set_xticks(np.arange(len(table) + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(len(table) + 1) - 0.5, minor=True)
        axes.grid(which="minor")
        axes.tick_params(which="both", length=0)
        axes.spines[:].set_visible(False)
        return _svg(figure), left_out


def _fold(table: np.ndarray, names: Sequence[str]) -> tuple[np.ndarray, list[str], int]:
    """The matrix with the classes that are confused least in one row and column."""
    if len(names) <= MOST_CELLS:
        return table, list(names), 0
    inner = table[:-1, :-1]
    wrong = inner.sum(axis=0) + inner.sum(axis=1) - 2 * inner.diagonal()
    kept = np.sort(np.argsort(-wrong, kind="stable")[: MOST_CELLS - 1])
    where = np.full(len(table), MOST_CELLS - 1)
    where[kept], where[-1] = np.arange(len(kept)), MOST_CELLS
    folded = np.zeros((MOST_CELLS + 1, MOST_CELLS + 1), table.dtype)
    np.add.at(folded, (where[:, None], where[None]), table)
    return folded, [*(names[k] for k in kept), "other classes"], len(names) - len(kept)


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.2, 4.2))
    return figure, figure.subplots()


def _by_class(
    axes: Axes,
    analysis: Analysis,
    lines: Sequence[tuple[int, np.ndarray, np.ndarray]],
    **more: str,
) -> None:
    """Draw a line for each class; if they are many, all in grey."""
    few = len(lines) <= len(_LINES)
    for n, (label, x, y) in enumerate(lines):
        name = short(analysis.class_names[label])
        style = {"color": GREY, "linewidth": 0.8, "alpha": 0.5}
        if few:
            style = {"color": _LINES[n], "linewidth": 1.5, "label": name}
        elif n == 0:
            style["label"] = "each class"
        axes.plot(*_thinned(x, y), **style, **more)


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most ``_POINTS`` points of a curve over descending scores; others have fewer anyway."""
    if len(x) <= _POINTS:
        return x, y
    keep = np.unique(np.searchsorted(-x, -np.linspace(x[0], x[-1], _POINTS)))
    return x[keep], y[keep]


def _legend(axes: Axes, **place: object) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=9, **place)


def _svg(figure: Figure) -> str:
    """The figure as an SVG element for a page; its text colour is the page's."""
    stream = io.StringIO()
    with warnings.catch_warnings():
        # The browser has the letters that matplotlib's font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        options = {"transparent": True, "bbox_inches": "tight", "metadata": _NO_METADATA}
        figure.savefig(stream, format="svg", **options)
    text = stream.getvalue()
    return text[text.index("<svg") :].replace(_INK, "currentColor")
