"""Which samples several rules of assignment make positive, side by side.

Images and figures are (H, W, 3) uint8 RGB arrays. Needs matplotlib.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from onenet.assignment.explain import Assignment

from .canvas import add_box, class_colors, figure_of_rows, plain_text, render, show

_MOST_COLUMNS = 5
_SIZES = (4.5, 7, 10)  # markers on the finest level, the next, and all others
_POSITIVE = {"linestyle": "none", "markeredgecolor": "black", "markeredgewidth": 0.6}
_IGNORED = {"linestyle": "none", "marker": "x", "color": "white", "alpha": 0.6}
_SHADE = 0.6  # how much of the image's light is left, so that markers stand out


def draw_rules(
    images: Sequence[np.ndarray], assignments: Mapping[str, Sequence[Assignment]]
) -> np.ndarray:
    """Draw the objects of images with all their positives and the ignored samples, by rule.

    Every object has a colour of its own, and its positives have it, too. Their markers grow with
    the level.

    Args:
        images: (H, W, 3) uint8 RGB each, of any resolution.
        assignments: by the rule's name, the assignment of each image, with at least one object.

    Returns:
        (H', W', 3) uint8 RGB; each image has a row, or several if the rules do not fit into one.
    """
    lines = math.ceil(len(assignments) / _MOST_COLUMNS)
    columns = math.ceil(len(assignments) / lines)
    ratio = max(image.shape[0] / image.shape[1] for image in images)
    height = lines * (4 * min(2.0, ratio) + 0.5)
    figure, rows = figure_of_rows(len(images), width=4 * columns, height=height)
    for number, (row, image) in enumerate(zip(rows, images, strict=True)):
        axes = row.subplots(lines, columns, squeeze=False).flatten()
        for axis in axes[len(assignments) :]:
            axis.remove()
        for axis, (name, found) in zip(axes, assignments.items(), strict=False):
            _draw_rule(axis, image, found[number], name)
    every = [one for found in assignments.values() for one in found]
    handles = [Line2D([], [], marker="o", color="grey", label="positive", ms=6, **_POSITIVE)]
    if any(one.ignored.any() for one in every):
        handles.append(Line2D([], [], **{**_IGNORED, "color": "grey"}, label="ignored"))
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    return render(figure)


def _draw_rule(axis: Axes, image: np.ndarray, assignment: Assignment, name: str) -> None:
    show(axis, (_SHADE * image).astype(np.uint8), assignment.targets.image_size)
    objects = len(assignment.targets)
    points, (sample, target) = assignment.points, assignment.pairs.T
    for number, (color, _) in enumerate(class_colors(objects)):
        add_box(axis, assignment.targets.boxes[number], edgecolor=color, linewidth=1.2)
        mine = sample[target == number]
        for level in assignment.levels[mine].unique().tolist():
            here = mine[assignment.levels[mine] == level]
            size = _SIZES[min(level, len(_SIZES) - 1)]
            style = {"marker": "o", "color": color, "markersize": size, **_POSITIVE}
            axis.plot(*points[here].T, **style)
    axis.plot(*points[assignment.ignored].T, **_IGNORED, markersize=4)
    height, width = assignment.targets.image_size
    axis.set(xlim=(0, width), ylim=(height, 0))
    for line in axis.lines:  # samples in the padding widen nothing, but are seen
        line.set(clip_on=False, in_layout=False)
    empty = objects - len(target.unique())
    text = f"{plain_text(name)}: {len(sample) / objects:.1f} positives an object"
    more = [f"{empty} without any"] if empty else []
    if count := int(assignment.ignored.sum()):
        more.append(f"{count} samples ignored")
    axis.set_title("\n".join([text, ", ".join(more)]), fontsize=9)
