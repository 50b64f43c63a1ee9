"""One figure of a data set's classes and of the numbers, sizes, shapes and places of objects."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from onenet.visualization.canvas import plain_text

MOST_CLASSES = 25  # that have a bar of their own
COCO_SIDES = {"small": (0, 32), "medium": (32, 96), "large": (96, np.inf)}  # px
BLUE, ORANGE, GREY = "#3572b0", "#e07b39", "#bbbbbb"
PLAIN = FuncFormatter(lambda value, _: f"{value:g}")


def draw(name: str, objects: Any, resized: Any | None = None) -> Figure:
    """Draw a figure with six panels; save it with ``savefig``.

    Args:
        name: the data set's name.
        objects: ``onenet.data.annotations.Annotations`` without crowd regions.
        resized: the same annotations after a resize.
    """
    figure = Figure(figsize=(16, 9.5), dpi=100, layout="constrained")
    figure.suptitle(
        f"{plain_text(name)}: {len(objects.labels):,} objects of {len(objects.class_names)} "
        f"{'class' if len(objects.class_names) == 1 else 'classes'} "
        f"in {len(objects.sizes):,} images"
    )
    (classes, numbers, sides), (shapes, ratios, places) = figure.subplots(2, 3)
    _classes(classes, objects)
    _numbers(numbers, objects)
    _sides(sides, objects, resized)
    _shapes(shapes, objects)
    _ratios(ratios, objects)
    _places(places, objects)
    return figure


def _classes(axes: Axes, objects: Any) -> None:
    counts = np.bincount(objects.labels, minlength=len(objects.class_names))
    order = np.argsort(-counts, kind="stable")
    shown, rest = order[:MOST_CLASSES], order[MOST_CLASSES:]
    names, values = [plain_text(objects.class_names[k]) for k in shown], counts[shown].tolist()
    if len(rest):
        names.append(f"{len(rest)} more classes")
        values.append(int(counts[rest].sum()))
    bars = axes.barh(
        range(len(names)), values, color=[BLUE] * len(shown) + [GREY] * (len(rest) > 0)
    )
    axes.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8 if len(names) > 12 else 10)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set(title="Classes", xlabel="objects")


def _numbers(axes: Axes, objects: Any) -> None:
    counts = np.bincount(objects.images, minlength=len(objects.sizes))
    width = int(np.ceil((counts.max() + 1) / 40))
    axes.hist(counts, bins=np.arange(0, counts.max() + width + 1, width) - 0.5, color=BLUE)
    axes.axvline(counts.mean(), color="black", linestyle=":", label=f"mean {counts.mean():.1f}")
    axes.legend()
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    axes.set(title="Objects per image", xlabel="objects", ylabel="images")


def _sides(axes: Axes, objects: Any, resized: Any | None) -> None:
    both = np.concatenate((objects.sides, objects.sides if resized is None else resized.sides))
    bins = _log_bins(both)
    axes.hist(objects.sides, bins, color=BLUE, label="as annotated")
    if resized is not None:
        style = {"histtype": "step", "color": ORANGE, "linewidth": 2}
        axes.hist(resized.sides, bins, **style, label="after the resize")
    axes.legend(loc="upper left", bbox_to_anchor=(0, 0.94))
    axes.margins(y=0.3)
    _log_ticks(axes)
    for name, (low, high) in COCO_SIDES.items():
        low, high = max(low, bins[0]), min(high, bins[-1])
        if low < high:
            axes.axvline(low, color="black", linewidth=1, linestyle=":")
            middle = np.sqrt(low * high)
            axes.text(
                middle, 0.99, name, transform=axes.get_xaxis_transform(), ha="center", va="top"
            )
    axes.set_xlim(bins[0], bins[-1])
    axes.set(title="Size, with COCO's bounds", xlabel="√(width · height), px", ylabel="objects")


def _shapes(axes: Axes, objects: Any) -> None:
    width, height = objects.boxes[:, 2:].T
    scale = {"xscale": "log", "yscale": "log", "bins": "log"}
    cells = axes.hexbin(width, height, gridsize=40, mincnt=1, cmap="viridis", **scale)
    bar = axes.figure.colorbar(cells, ax=axes, label="objects", format=PLAIN)
    bar.ax.yaxis.set_minor_formatter(PLAIN)
    limits = axes.get_xlim(), axes.get_ylim()
    axes.axline((1, 1), (2, 2), color="red", linewidth=1, linestyle="--", label="squares")
    axes.set(xlim=limits[0], ylim=limits[1])
    axes.legend(loc="upper left")
    _log_ticks(axes, "xy")
    axes.set(title="Width and height, as annotated", xlabel="width, px", ylabel="height, px")


def _ratios(axes: Axes, objects: Any) -> None:
    ratios = objects.boxes[:, 2] / objects.boxes[:, 3]
    axes.hist(ratios, _log_bins(ratios), color=BLUE)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:g}" if value >= 1 else f"1/{1 / value:g}")
    )
    axes.axvline(1, color="red", linewidth=1, linestyle="--", label="squares")
    axes.legend()
    axes.set(title="Shape: tall to the left, wide to the right", xlabel="width / height")
    axes.set_ylabel("objects")


def _places(axes: Axes, objects: Any) -> None:
    centres = (objects.boxes[:, :2] + objects.boxes[:, 2:] / 2) / objects.sizes[objects.images]
    cells = int(np.clip(np.sqrt(len(centres)) / 4, 4, 40))
    image = axes.hist2d(*centres.T, bins=cells, range=[[0, 1], [0, 1]], cmap="viridis")[3]
    axes.figure.colorbar(image, ax=axes, label="objects")
    axes.invert_yaxis()
    axes.set(title="Centres in the image", xlabel="x / width", ylabel="y / height")


def _log_bins(values: np.ndarray) -> np.ndarray:
    """40 bins of equal width on a logarithmic scale."""
    low, high = (values.min(), values.max()) if len(values) else (1, 2)
    return np.geomspace(low * 0.99, high * 1.01, 41)


def _log_ticks(axes: Axes, which: str = "x") -> None:
    """Make axes logarithmic, with plain numbers as labels."""
    for name in which:
        getattr(axes, f"set_{name}scale")("log")
        axis = getattr(axes, f"{name}axis")
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(PLAIN)
        axis.set_minor_locator(NullLocator())
