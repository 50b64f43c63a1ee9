"""The table and the picture of tools/compare.py."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from _shared.machine import summary
from onenet.visualization.paper_figures import plain_text


@dataclass(frozen=True)
class Row:
    """A detector's line of the table.

    Attributes:
        name: of the config file.
        remedy: what it does about several detections of one object.
        ap, ap50: COCO's, 0…100, as the config says.
        ap_without: without the remedy.
        ap_nms: with NMS.
        milliseconds: median for an image, from its resized pixels to its detections.
        post_share: of that, after the last layer, in percent.
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


def table(rows: Sequence[Row]) -> str:
    """Markdown, one line a detector."""
    cells = [
        [value if isinstance(value, str) else f"{value:.1f}" for value in asdict(row).values()]
        for row in rows
    ]
    align = ["left", "left", *["right"] * (len(COLUMNS) - 2)]
    return tabulate(cells, list(COLUMNS.values()), "pipe", colalign=align, disable_numparse=True)


def draw(rows: Sequence[Row], path: Path) -> None:
    """AP against latency: filled as it is, hollow without its remedy for duplicates."""
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
    axes.plot([], [], "o", color="0.4", mfc="white", label="without its remedy for duplicates")
    axes.set_xlabel("ms for an image")
    axes.set_ylabel("AP")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def write(output: Path, rows: Sequence[Row], machine: dict[str, Any], details: Any) -> str:
    """The four files; returns the table."""
    text = table(rows)
    notes = (
        'AP on the test set after the same training; "AP without it": without the remedy for '
        "duplicates. ms: median for one image, resized and on the device, detectors in turn, batch "
        "norms folded. GFLOPs count multiply-adds."
    )
    command = f"`{machine['command']}`"
    (output / "comparison.md").write_text(
        "\n\n".join([text, notes, summary(machine), command]) + "\n"
    )
    with (output / "comparison.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(COLUMNS))
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    content = {"machine": machine, "rows": [asdict(row) for row in rows], **details}
    (output / "comparison.json").write_text(json.dumps(content, indent=1) + "\n")
    draw(rows, output / "comparison.png")
    return text
