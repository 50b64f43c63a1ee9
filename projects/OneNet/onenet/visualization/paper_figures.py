"""Figures 5 (assignments and their costs) and 6 (duplicates) of the paper, arXiv 2012.05780.

Images and figures are (H, W, 3) uint8 RGB arrays. Needs matplotlib; the rest of the core does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from torch import Tensor

from onenet.assignment.explain import Assignment
from onenet.evaluation.duplicates import find_duplicates, objects_of
from onenet.structures import Detections, Targets

from .boxes import class_palette
from .cost_map import cost_grid

_DPI = 100
_HEAT = "inferno_r"  # low costs are bright
_MARGIN = 0.6  # shown around an object, as a fraction of its sides
_RULED_OUT = 1000.0  # costs that exceed the lowest by more than this are not drawn
_SAMPLE = {"linestyle": "none", "markeredgecolor": "black", "markeredgewidth": 0.8}
_POSITIVE = {**_SAMPLE, "marker": "*", "color": "#ffe600", "markersize": 14}
_PATH = {"color": _POSITIVE["color"], "linewidth": 1.5}
_BY_LOCATION = {**_SAMPLE, "marker": "X", "color": "#00e5ff", "markersize": 8}
# How each kind of detection is drawn.
_BEST = {"edgecolor": "#00d05a", "linestyle": "-"}
_DUPLICATE = {"edgecolor": "#ff2a2a", "linestyle": "--"}
_NOTHING = {"edgecolor": "#ffb000", "linestyle": ":"}


def draw_assignments(
    images: Sequence[np.ndarray],
    assignments: Sequence[Assignment],
    class_names: Sequence[str],
    chosen: Sequence[int],
) -> np.ndarray:
    """Draw the objects of images with their positive samples, and a cost map of one object each.

    Args:
        images: (H, W, 3) uint8 RGB each, of any resolution.
        assignments: the assignment of each image, with at least one object.
        class_names: name of each label.
        chosen: for each image, the index of the object whose costs are shown.

    Returns:
        (H', W', 3) uint8 RGB, one row per image.
    """
    figure, rows = _figure(len(images), width=16, height=6)
    for row, image, assignment, number in zip(rows, images, assignments, chosen, strict=True):
        left, right = row.subfigures(1, 2, width_ratios=(1.15, 1))
        _draw_objects(left.subplots(), image, assignment, class_names)
        terms = {"total": assignment.cost, **assignment.terms}
        axes = right.subplots(2, max(2, (len(terms) + 1) // 2)).flatten()
        for axis in axes[len(terms) :]:
            axis.remove()
        for axis, (name, term) in zip(axes, terms.items(), strict=False):
            heat = _draw_cost(axis, image, assignment, number, term)
            right.colorbar(heat, ax=axis)
            axis.set_title(name)
        right.suptitle(_cost_title(assignment, number, class_names))
    _add_legend(figure, assignments, class_names)
    return _render(figure)


def draw_training(
    images: Sequence[np.ndarray],
    history: Sequence[Sequence[Assignment]],
    class_names: Sequence[str],
    chosen: Sequence[int],
    title: str,
) -> np.ndarray:
    """Draw one moment of training: where the positives are now, and the paths they took.

    Args:
        images: (H, W, 3) uint8 RGB each, of any resolution.
        history: for each moment up to now, the assignments of all images, each with at least one
            object.
        class_names: name of each label.
        chosen: for each image, the index of the object whose cost is shown.
        title: names the moment.

    Returns:
        (H', W', 3) uint8 RGB, one row per image; the size is the same at every moment.
    """
    figure, rows = _figure(len(images), width=12, height=4.6)
    for i, (row, image, number) in enumerate(zip(rows, images, chosen, strict=True)):
        left, right = row.subplots(1, 2, width_ratios=(1.3, 1))
        past = [assignments[i] for assignments in history]
        _draw_objects(left, image, past[-1], class_names, past)
        _draw_cost(right, image, past[-1], number, past[-1].cost)
        right.set_title(_cost_title(past[-1], number, class_names))
    figure.suptitle(plain_text(title), fontweight="bold")
    path = Line2D([], [], label="its path until now", **_PATH)
    _add_legend(figure, history[-1], class_names, path)
    return _render(figure)


def draw_duplicates(
    images: Sequence[np.ndarray],
    detections: Sequence[Sequence[Detections]],
    targets: Sequence[Targets],
    class_names: Sequence[str],
    names: Sequence[str],
) -> np.ndarray:
    """Draw the detections of one or more models side by side, with duplicates marked.

    Args:
        images: (H, W, 3) uint8 RGB each.
        detections: for each model, the detections of each image in its px; all are drawn.
        targets: the objects of each image, in its px.
        class_names: name of each label.
        names: the models' names.

    Returns:
        (H', W', 3) uint8 RGB, one row per image and one column per model.
    """
    figure, rows = _figure(len(images), width=7.5 * len(names), height=5.8)
    for i, (row, image, truth) in enumerate(zip(rows, images, targets, strict=True)):
        axes = row.subplots(1, len(names), squeeze=False)[0]
        for axis, name, found in zip(axes, names, detections, strict=True):
            _draw_detections(axis, image, found[i], truth, class_names, name)
    kinds = {
        "best detection of an object": _BEST,
        "duplicate": _DUPLICATE,
        "detection of no object": _NOTHING,
    }
    handles = [Rectangle((0, 0), 1, 1, fill=False, lw=2, label=k, **v) for k, v in kinds.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    return _render(figure)


def plain_text(text: str) -> str:
    """Escape ``text`` so that matplotlib shows it as it is, not as a formula, in legends too."""
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def _figure(count: int, width: float, height: float) -> tuple[Figure, Sequence[Any]]:
    """A figure and its ``count`` rows; width of the figure and height of a row in inches."""
    figure = Figure(figsize=(width, height * count + 0.4), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subfigures(count, 1, squeeze=False)[:, 0]


def _render(figure: Figure) -> np.ndarray:
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


def _show(axis: Axes, image: np.ndarray, size: tuple[int, int]) -> None:
    """Show an image of any resolution so that coordinates are px of ``size`` (H, W)."""
    height, width = size
    axis.imshow(image, extent=(0, width, height, 0), interpolation="lanczos")
    axis.set(xticks=[], yticks=[])


def _add_box(axis: Axes, box: Tensor, **style: Any) -> None:
    x1, y1, x2, y2 = box.tolist()
    outline = patheffects.withStroke(linewidth=3.2, foreground="black", alpha=0.5)
    style = {"linewidth": 1.8, "path_effects": [outline], **style}
    axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, **style))


def _add_label(axis: Axes, box: Tensor, text: str, color: str, background: str) -> None:
    """Write text in the upper left corner of a box."""
    axis.annotate(
        plain_text(text),
        box[:2].tolist(),
        xytext=(2, -2),
        textcoords="offset points",
        va="top",
        fontsize=8,
        color=color,
        bbox={"boxstyle": "square,pad=0.15", "color": background},
    )


def _class_colors(count: int) -> list[tuple[str, str]]:
    """The colour of each class and of text on it, as hex codes."""
    colors, inks = class_palette(count)
    return [(c.as_hex(), i.as_hex()) for c, i in zip(colors.colors, inks.colors, strict=True)]


def _draw_objects(
    axis: Axes,
    image: np.ndarray,
    assignment: Assignment,
    class_names: Sequence[str],
    past: Sequence[Assignment] = (),
) -> None:
    """Draw numbered objects, both kinds of positives, and the positives' paths through ``past``."""
    targets, points = assignment.targets, assignment.points
    _show(axis, image, targets.image_size)
    colors = _class_colors(len(class_names))
    for i, (box, label) in enumerate(zip(targets.boxes, targets.labels.tolist(), strict=True)):
        color, ink = colors[label]
        _add_box(axis, box, edgecolor=color)
        _add_label(axis, box, str(i + 1), ink, color)
        both = [int(kind[i]) for kind in assignment.kinds if kind[i] >= 0]
        axis.plot(*points[both].T, color="white", linewidth=1)
        path = [a.points[a.positives[i]] for a in past if a.positives[i] >= 0]
        if len(path) > 1:
            axis.plot(*torch.stack(path).T, **_PATH)
    for chosen, style in _kinds(assignment):
        axis.plot(*points[chosen[chosen >= 0]].T, **style)


def _kinds(assignment: Assignment) -> list[tuple[Tensor, dict[str, Any]]]:
    """The kinds of positives and their markers, the smaller marker last."""
    return list(zip(assignment.kinds, (_POSITIVE, _BY_LOCATION), strict=False))


def _draw_cost(
    axis: Axes, image: np.ndarray, assignment: Assignment, number: int, term: Tensor
) -> Any:
    """Draw one term of an object's cost around it, with box and positives.

    Returns:
        The heat map; for queries, which form no grid, a coloured point each.
    """
    targets, points = assignment.targets, assignment.points
    grey = image.mean(axis=2).astype(np.uint8)
    _show(axis, np.repeat(grey[..., None], 3, axis=2), targets.image_size)
    x1, y1, x2, y2 = window = assignment.around(number, _MARGIN)
    if assignment.by_location is None:
        near = (points >= points.new_tensor((x1, y1))) & (points <= points.new_tensor((x2, y2)))
        here = near.all(dim=1).nonzero()[:, 0]
        here = here[term[here, number].argsort(descending=True)]  # the cheapest on top
        values = term[here, number].numpy()
        heat = axis.scatter(*points[here].T, c=values, cmap=_HEAT, edgecolors="white")
    else:
        level = (assignment.levels == assignment.level_of(number)).nonzero()[:, 0]
        costs = assignment.cost[level, number].numpy()
        grid, (left, top, right, bottom) = cost_grid(points[level].numpy(), costs, window)
        values = term[level, number].numpy()[grid]
        # Samples that a predefined cost rules out would take up the whole range of colours.
        values = np.where(values > values.min() + _RULED_OUT, np.nan, values)
        heat = axis.imshow(
            values,
            cmap=_HEAT,
            alpha=0.65,
            extent=(left, right, bottom, top),
            interpolation="nearest",
        )
    _add_box(axis, targets.boxes[number], edgecolor="white")
    for chosen, style in _kinds(assignment):
        if chosen[number] >= 0:
            axis.plot(*points[chosen[number]], **style)
    axis.set(xlim=(x1, x2), ylim=(y2, y1))
    return heat


def _cost_title(assignment: Assignment, number: int, class_names: Sequence[str]) -> str:
    label = int(assignment.targets.labels[number])
    name = plain_text(class_names[label])
    text = f"cost for object {number + 1}, {name} (bright: low)"
    levels = int(assignment.levels.max()) + 1
    if levels == 1:
        return text
    return f"{text}, on level {assignment.level_of(number) + 1} of {levels}"


def _add_legend(
    figure: Figure, assignments: Sequence[Assignment], class_names: Sequence[str], *more: Any
) -> None:
    labels = torch.cat([a.targets.labels for a in assignments]).unique().tolist()
    colors = _class_colors(len(class_names))
    queries = all(assignment.by_location is None for assignment in assignments)
    label = "middle of the positive query's box" if queries else "positive by minimum cost"
    handles = [Line2D([], [], label=label, **_POSITIVE), *more]
    if not queries:
        label = "positive by predefined location cost alone"
        handles.append(Line2D([], [], label=label, **_BY_LOCATION))
    handles += [
        Rectangle((0, 0), 1, 1, fill=False, lw=2, edgecolor=colors[k][0], label=plain_text(name))
        for k, name in ((k, class_names[k]) for k in labels)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=8, frameon=False)


def _draw_detections(
    axis: Axes,
    image: np.ndarray,
    found: Detections,
    truth: Targets,
    class_names: Sequence[str],
    name: str,
) -> None:
    _show(axis, image, image.shape[:2])
    objects = objects_of(found.boxes, found.labels, truth.boxes, truth.labels)
    repeated = find_duplicates(objects)
    for i in reversed(range(len(found))):  # the best on top
        kind = _NOTHING if objects[i] < 0 else _DUPLICATE if repeated[i] else _BEST
        _add_box(axis, found.boxes[i], **kind)
        if kind is _BEST:
            label = f"{class_names[found.labels[i]]} {100 * found.scores[i]:.0f}%"
            _add_label(axis, found.boxes[i], label, "black", _BEST["edgecolor"])
    matched, duplicates = len(objects[objects >= 0].unique()), int(repeated.sum())
    axis.set_title(
        f"{plain_text(name)}\nobjects found {matched} of {len(truth)}, duplicates {duplicates}, "
        f"of no object {int((objects < 0).sum())}"
    )
