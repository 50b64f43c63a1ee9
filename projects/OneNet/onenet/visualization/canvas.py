"""What figures of images with boxes have in common: rows, colours, boxes and labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from .boxes import class_palette

_DPI = 100


def plain_text(text: str) -> str:
    """Escape ``text`` so that matplotlib shows it as it is, not as a formula, in legends too."""
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def figure_of_rows(count: int, width: float, height: float) -> tuple[Figure, Sequence[Any]]:
    """A figure and its ``count`` rows; width of the figure and height of a row in inches."""
    figure = Figure(figsize=(width, height * count + 0.4), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subfigures(count, 1, squeeze=False)[:, 0]


def render(figure: Figure) -> np.ndarray:
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


def show(axis: Axes, image: np.ndarray, size: tuple[int, int]) -> None:
    """Show an image of any resolution so that coordinates are px of ``size`` (H, W)."""
    height, width = size
    axis.imshow(image, extent=(0, width, height, 0), interpolation="lanczos")
    axis.set(xticks=[], yticks=[])


def add_box(axis: Axes, box: Tensor, **style: Any) -> None:
    x1, y1, x2, y2 = box.tolist()
    outline = patheffects.withStroke(linewidth=3.2, foreground="black", alpha=0.5)
    style = {"linewidth": 1.8, "path_effects": [outline], **style}
    axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, **style))


def add_label(axis: Axes, box: Tensor, text: str, color: str, background: str) -> None:
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


def class_colors(count: int) -> list[tuple[str, str]]:
    """The colour of each class and of text on it, as hex codes."""
    colors, inks = class_palette(count)
    return [(c.as_hex(), i.as_hex()) for c, i in zip(colors.colors, inks.colors, strict=True)]
