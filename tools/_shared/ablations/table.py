"""The tables of an ablation: mean ± standard deviation over the seeds for each row."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from tabulate import tabulate

from _shared.machine import summary
from onenet.files import strict_json
from onenet.visualization.canvas import plain_text

# Columns and their number of decimals.
COLUMNS = {
    "AP": 1,
    "AP50": 1,
    "AP with NMS": 1,
    "AP50 with NMS": 1,
    "gain of NMS": 1,
    "duplicates": 2,
}
SPEED, POSITIVES = "images/s", "positives an object"
MEASURED = {POSITIVES: 2, SPEED: 1}  # only where the spec asks for them
NOTES = (
    "Mean ± standard deviation over the seeds. Duplicates: mean number of detections per detected "
    "object, without NMS; 1 means no duplicates."
)
POSITIVES_NOTE = (
    "Positives an object: how many samples the rule gives an object of the test images, from the "
    "predictions of the trained model."
)


@dataclass(frozen=True)
class Result:
    """Results of a row for one seed.

    Attributes:
        without: metrics without NMS; None: not there yet.
        nms: metrics with NMS; None: not there yet.
        failed: whether one of its runs failed.
        positives: see ``POSITIVES_NOTE``; None: not measured.
    """

    without: Mapping[str, float] | None = None
    nms: Mapping[str, float] | None = None
    failed: bool = False
    positives: float | None = None

    @property
    def values(self) -> dict[str, float]:
        """The finite values that exist, by column."""
        found: dict[str, float] = {}
        if self.without is not None:
            found |= {name: self.without[f"bbox/{name}"] for name in ("AP", "AP50", "duplicates")}
        if self.nms is not None:
            found |= {f"{name} with NMS": self.nms[f"bbox/{name}"] for name in ("AP", "AP50")}
        if self.without is not None and self.nms is not None:
            found["gain of NMS"] = found["AP with NMS"] - found["AP"]
        if self.positives is not None:
            found[POSITIVES] = self.positives
        return {name: value for name, value in found.items() if math.isfinite(value)}


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        labels: labels by axis.
        results: results by seed.
        speed: images/s without NMS; None: not measured.
    """

    labels: Mapping[str, str]
    results: Mapping[int, Result]
    speed: float | None = None

    def column(self, name: str) -> list[float]:
        """The values of a column that exist, one per seed."""
        if name == SPEED:
            return [] if self.speed is None else [self.speed]
        return [r.values[name] for r in self.results.values() if name in r.values]

    @property
    def seeds(self) -> str:
        """The number of finished seeds, and which seeds failed."""
        done = sum(result.nms is not None for result in self.results.values())
        failed = [str(seed) for seed, result in self.results.items() if result.failed]
        text = str(done) if done == len(self.results) else f"{done} of {len(self.results)}"
        return f"{text}, failed: {', '.join(failed)}" if failed else text


def spread(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean and standard deviation (of n - 1 degrees of freedom); None if values are too few."""
    return (mean(values) if values else None, stdev(values) if len(values) > 1 else None)


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table; cells without a result are empty."""
    columns = _columns(rows)
    axes = list(rows[0].labels)
    cells = [
        [*row.labels.values(), row.seeds, *(_cell(row.column(c), d) for c, d in columns.items())]
        for row in rows
    ]
    align = [*["left"] * len(axes), *["right"] * (1 + len(columns))]
    headers = [*axes, "seeds", *columns]
    return tabulate(cells, headers, "pipe", colalign=align, disable_numparse=True)


def _columns(rows: Sequence[Row]) -> dict[str, int]:
    return COLUMNS | {c: d for c, d in MEASURED.items() if any(row.column(c) for row in rows)}


def _cell(values: Sequence[float], decimals: int) -> str:
    middle, deviation = spread(values)
    if middle is None:
        return ""
    text = f"{middle:.{decimals}f}"
    return text if deviation is None else f"{text} ± {deviation:.{decimals}f}"


def files(output: Path, name: str) -> list[Path]:
    """What :func:`write` writes."""
    return [output / f"{name}{suffix}" for suffix in (".md", ".csv", ".json", ".png")]


def write(
    output: Path,
    name: str,
    title: str,
    rows: Sequence[Row],
    machine: Mapping[str, Any],
    plot: Sequence[str],
) -> str:
    """Write ``NAME.md``, ``.csv``, ``.json`` and ``.png`` into ``output``; returns the table."""
    text = table(rows)
    notes = [NOTES, *([POSITIVES_NOTE] if POSITIVES in _columns(rows) else [])]
    parts = [f"# {title}", text, *notes, summary(dict(machine)), f"`{machine['command']}`"]
    markdown, csv_file, json_file, chart = files(output, name)
    markdown.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    _write_csv(csv_file, rows)
    content = {"title": title, "machine": machine, "rows": [_to_json(row) for row in rows]}
    json_file.write_text(strict_json(content, indent=1) + "\n", encoding="utf-8")
    draw(rows, plot, title, chart)
    return text


def _write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write a line per row and seed."""
    columns = _columns(rows)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*rows[0].labels, "seed", "state", *columns])
        for row in rows:
            for seed, result in row.results.items():
                values = result.values | ({} if row.speed is None else {SPEED: row.speed})
                state = "failed" if result.failed else "done" if result.nms is not None else ""
                cells = [values.get(column, "") for column in columns]
                writer.writerow([*row.labels.values(), seed, state, *cells])


def _to_json(row: Row) -> dict[str, Any]:
    over_seeds = {column: spread(row.column(column)) for column in (*COLUMNS, POSITIVES)}
    return {
        "labels": dict(row.labels),
        "mean": {column: both[0] for column, both in over_seeds.items()},
        "sd": {column: both[1] for column, both in over_seeds.items()},
        SPEED: row.speed,
        "seeds": {
            seed: {
                "failed": result.failed,
                **result.values,
                "without NMS": result.without,
                "with NMS": result.nms,
            }
            for seed, result in row.results.items()
        },
    }


def draw(rows: Sequence[Row], plot: Sequence[str], title: str, path: Path) -> None:
    """Draw the means as bars, with a panel per column in ``plot`` and a dot per seed.

    A column that also exists with NMS gets a second bar for it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.5 + 4.5 * len(plot), 1.2 + 0.5 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(plot), squeeze=False, sharey=True)[0]
    for panel, column in zip(panels, plot, strict=True):
        names = [n for n in (column, f"{column} with NMS") if n in (*COLUMNS, *MEASURED)]
        height = 0.8 / len(names)
        for number, name in enumerate(names):
            for place, row in enumerate(rows):
                values = row.column(name)
                y = place + (number - (len(names) - 1) / 2) * height
                if values:
                    panel.barh(y, mean(values), height * 0.9, color=f"C{number}", alpha=0.7)
                panel.plot(values, [y] * len(values), "k.", ms=4)
            panel.barh(0, 0, color=f"C{number}", alpha=0.7, label=name)
        panel.set_xlabel(column)
        panel.grid(axis="x", alpha=0.3)
        panel.set_axisbelow(True)
        if len(names) > 1:
            panel.legend(
                fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False
            )
    labels = [plain_text(", ".join(row.labels.values())) for row in rows]
    panels[0].set_yticks(range(len(rows)), labels)
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    panels[0].set_ylabel(plain_text(", ".join(rows[0].labels)))
    figure.suptitle(plain_text(title), fontsize=10)
    figure.savefig(path, dpi=120)
