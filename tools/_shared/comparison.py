"""The table and the picture of tools/compare.py."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from _shared.machine import summary
from onenet.files import strict_json
from onenet.visualization.canvas import plain_text


@dataclass(frozen=True)
class DetectorRow:
    """A detector's row in the table.

    Attributes:
        name: name of the config file, without suffix.
        remedy: what the detector does against duplicates.
        ap, ap50: COCO's AP and AP50 in per cent, with the config as it is.
        ap_without: AP without the remedy.
        ap_nms: AP with NMS.
        milliseconds: median time per image, from resized pixels to detections.
        post_share: part of that time spent after the last layer, in per cent.
        parameters: millions.
        gflops: 10⁹ multiply-adds on the first image, as fvcore counts them.
    """

    name: str
    remedy: str
    ap: float
    ap50: float
    ap_without: float
    ap_nms: float
    milliseconds: float
    post_share: float
    parameters: float
    gflops: float


# What :func:`write` writes.
FILES = ("comparison.md", "comparison.csv", "comparison.json", "comparison.png")
COLUMNS = {
    "name": "config",
    "remedy": "against duplicates",
    "ap": "AP",
    "ap50": "AP50",
    "ap_without": "AP without it",
    "ap_nms": "AP with NMS",
    "milliseconds": "ms",
    "post_share": "post-processing %",
    "parameters": "parameters, M",
    "gflops": "GFLOPs",
}


def table(rows: Sequence[DetectorRow]) -> str:
    """A Markdown table with one row per detector."""
    cells = [
        [value if isinstance(value, str) else f"{value:.1f}" for value in asdict(row).values()]
        for row in rows
    ]
    align = ["left", "left", *["right"] * (len(COLUMNS) - 2)]
    return tabulate(cells, list(COLUMNS.values()), "pipe", colalign=align, disable_numparse=True)


def draw(rows: Sequence[DetectorRow], path: Path) -> None:
    """Plot AP against latency: filled with the remedy against duplicates, hollow without it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for number, row in enumerate(rows):
        colour = f"C{number}"
        x = row.milliseconds
        axes.plot([x, x], [row.ap_without, row.ap], color=colour, lw=1, alpha=0.5)
        axes.plot(x, row.ap_without, "o", color=colour, mfc="white", ms=7)
        label = plain_text(f"{row.name} ({row.remedy})")
        axes.plot(x, row.ap, "o", color=colour, ms=7, label=label)
    axes.plot([], [], "o", color="0.4", mfc="white", label="without its remedy against duplicates")
    axes.set_xlabel("ms per image")
    axes.set_ylabel("AP")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def write(output: Path, rows: Sequence[DetectorRow], machine: dict[str, Any], details: Any) -> str:
    """Write ``comparison.md``, ``.csv``, ``.json`` and ``.png``; returns the table.

    Args:
        output: existing folder.
        machine: see :func:`_shared.machine.describe_machine`.
        details: further entries of the JSON file.
    """
    text = table(rows)
    notes = (
        'AP on the test set after the same training; "AP without it": without the remedy against '
        "duplicates. ms: median for one image that is resized and on the device, detectors timed "
        "in turn, batch norms folded. GFLOPs count multiply-adds."
    )
    command = f"`{machine['command']}`"
    markdown, csv_file, json_file, chart = (output / name for name in FILES)
    markdown.write_text(
        "\n\n".join([text, notes, summary(machine), command]) + "\n", encoding="utf-8"
    )
    with csv_file.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(COLUMNS))
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    content = {"machine": machine, "rows": [asdict(row) for row in rows], **details}
    json_file.write_text(strict_json(content, indent=1) + "\n", encoding="utf-8")
    draw(rows, chart)
    return text
