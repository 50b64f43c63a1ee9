"""Writing the benchmark's results: tables, JSON and charts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from _shared.machine import summary
from _shared.timing import TOTAL, Comparison
from tabulate import tabulate

from onenet.files import strict_json


def table(comparison: Comparison) -> str:
    """A comparison as a Markdown table: median ms, stages, images/s, speedup, facts."""
    stages = comparison.stages
    facts = {column: None for row in comparison.facts.values() for column in row}
    headers = [comparison.axis or "", "ms", *stages]
    headers += ["images/s"] * bool(comparison.images)
    headers += [f"× {comparison.baseline}"] * bool(comparison.baseline)
    rows = []
    for name, timings in comparison.timings.items():
        row: list[Any] = [name, _number(1000 * comparison.seconds(name))]
        row += [
            _number(1000 * comparison.seconds(name, stage)) if stage in timings else ""
            for stage in stages
        ]
        if comparison.images:
            row.append(_number(comparison.images / comparison.seconds(name)))
        if comparison.baseline:
            row.append(f"{comparison.speedup(name):.2f}")
        given = comparison.facts.get(name, {})
        row += [_number(given.get(column, "")) for column in facts]
        rows.append(row)
    text = tabulate(
        rows,
        [*headers, *facts],
        tablefmt="pipe",
        colalign=["left", *["right"] * (len(headers) + len(facts) - 1)],
        disable_numparse=True,
    )
    return "\n".join([comparison.title, "", text, *(["", *comparison.notes])]).rstrip()


def _number(value: Any) -> str:
    """A float with three digits, or all digits before the point; other values as text."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def files(output: Path, parts: Iterable[str]) -> list[Path]:
    """What :func:`write` writes for parts of the benchmark."""
    return [
        output / name for name in ("benchmark.md", "benchmark.json", *map("{}.png".format, parts))
    ]


def write(
    output: Path, results: Mapping[str, Sequence[Comparison]], machine: Mapping[str, Any]
) -> list[Path]:
    """Write ``benchmark.json``, ``benchmark.md`` and a chart for each part; returns their paths."""
    output.mkdir(parents=True, exist_ok=True)
    parts = {part: [to_json(one) for one in given] for part, given in results.items()}
    markdown, path, *charts = files(output, results)
    content = {"machine": machine, "parts": parts}
    path.write_text(strict_json(content, indent=1) + "\n", encoding="utf-8")
    tables = [
        "\n\n".join([f"## {part}", *map(table, comparisons)])
        for part, comparisons in results.items()
    ]
    text = "\n\n".join([f"`{machine['command']}`", summary(machine), *tables])
    markdown.write_text(text + "\n", encoding="utf-8")
    paths = [path, markdown]
    for chart, comparisons in zip(charts, results.values(), strict=True):
        if comparisons:
            paths.append(chart)
            draw(comparisons, chart)
    return paths


def to_json(comparison: Comparison) -> dict[str, Any]:
    """All timings of a comparison, with the medians (s) and speedups that the table shows."""
    return {
        **asdict(comparison),
        "medians": {
            name: {stage: comparison.seconds(name, stage) for stage in timings}
            for name, timings in comparison.timings.items()
        },
        "speedups": {name: comparison.speedup(name) for name in comparison.timings}
        if comparison.baseline
        else {},
    }


def draw(comparisons: Sequence[Comparison], path: Path) -> None:
    """Draw comparisons one below the other: bars split by stage, or log-log curves."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    heights = [3.0 if one.axis else 1.0 + 0.35 * len(one.timings) for one in comparisons]
    figure = Figure(figsize=(8, sum(heights) + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(comparisons), squeeze=False, height_ratios=heights)
    for axes, comparison in zip(grid[:, 0], comparisons, strict=True):
        (_curve if comparison.axis else _bars)(axes, comparison)
        axes.set_title(comparison.title, fontsize=9, loc="left")
        axes.tick_params(labelsize=8)
    figure.savefig(path, dpi=120)


def _bars(axes: Any, comparison: Comparison) -> None:
    """Draw median times, split into the candidate's stages, with a dot for each repeat."""
    names = list(comparison.timings)
    for place, name in enumerate(names):
        timings = comparison.timings[name]
        left = 0.0
        for number, stage in enumerate(comparison.stages):
            if stage in timings:
                width = 1000 * comparison.seconds(name, stage)
                axes.barh(place, width, left=left, color=f"C{number}", height=0.6)
                left += width
        rest = max(1000 * comparison.seconds(name) - left, 0.0)
        axes.barh(place, rest, left=left, color="0.7", height=0.6)
        axes.plot([1000 * s for s in timings[TOTAL]], [place] * len(timings[TOTAL]), "k.", ms=3)
    for number, stage in enumerate(comparison.stages):
        axes.barh(0, 0, color=f"C{number}", label=stage)
    if comparison.stages:
        axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("ms", fontsize=8)


def _curve(axes: Any, comparison: Comparison) -> None:
    """Draw times, and other facts that are numbers, against the candidates' values, log-log."""
    x = [float(name) for name in comparison.timings]
    axes.loglog(x, [1000 * comparison.seconds(n) for n in comparison.timings], "o-", label="ms")
    columns = {column: None for row in comparison.facts.values() for column in row}
    for column in columns:
        points = [
            (float(name), row[column])
            for name, row in comparison.facts.items()
            if isinstance(row.get(column), float) and row[column] > 0
        ]
        axes.loglog(*zip(*points, strict=True), "s--", label=column) if points else None
    axes.set_xlabel(comparison.axis, fontsize=8)
    axes.legend(fontsize=7)
    axes.grid(which="both", alpha=0.3)
