"""The report of an evaluation: one HTML page that holds its pictures, and ``report.json``."""

from __future__ import annotations

import base64
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from onenet.data.images import read_image
from onenet.errors import DatasetError
from onenet.evaluation.analysis import Analysis, analyse
from onenet.evaluation.best_threshold import REPORT_FILE
from onenet.evaluation.curves import BINS
from onenet.evaluation.matching import Kind
from onenet.evaluation.report_facts import Evaluated, errors_of, report_facts, summary
from onenet.evaluation.results import read_results
from onenet.files import strict_json, write_whole

from . import report_plots as plots
from .boxes import draw_marked, enlargement

logger = logging.getLogger(__name__)
PAGE_FILE = "report.html"
WORST = 12  # images that are drawn
_PANE = 640  # px, the longer side of a drawn image
_CROWDED = 15  # boxes from which on only errors have a text
_LISTED = 20  # missing images that are named
_PAIRS = 15  # pairs of confused classes that are listed
COLORS = {
    Kind.FOUND: plots.GREEN,
    Kind.MISSED: plots.RED,
    Kind.CONFUSED: plots.BLUE,
    Kind.DUPLICATE: plots.PURPLE,
    Kind.FALSE: plots.ORANGE,
    Kind.IGNORED: plots.GREY,
}


def write_report(evaluated: Evaluated, folder: Path, worst: int = WORST) -> Analysis:
    """Write ``report.html`` and ``report.json`` about a results file, and log what they say.

    Args:
        folder: for both files.
        worst: how many images with the most errors are drawn.

    Raises:
        DatasetError: the results file is not one, or belongs to another data set.
        WriteError: a file cannot be written.
    """
    truth = evaluated.truth
    results = read_results(
        evaluated.results_file,
        evaluated.truth_file,
        [image["id"] for image in truth["images"]],
        [category["id"] for category in truth["categories"]],
    )
    analysis = analyse(truth, results)
    unread: list[str] = []
    pictures = [
        _draw_worst(analysis, index, evaluated, unread) for index in analysis.worst_images(worst)
    ]
    missing = _missing(evaluated)
    facts = report_facts(analysis, evaluated, missing, worst)
    page = _page(analysis, facts, pictures, [*missing, *unread])
    write_whole(folder / PAGE_FILE, page.encode(errors="backslashreplace"))
    write_whole(folder / REPORT_FILE, strict_json(facts, indent=1).encode())
    for line in unread:
        logger.warning("The report lacks a picture: %s", line)
    logger.info("Report: %s. %s", folder / PAGE_FILE, summary(analysis))
    return analysis


def _missing(evaluated: Evaluated) -> list[str]:
    """The images of the data set that are not on the disk."""
    return [str(path) for path in evaluated.files.values() if not path.is_file()]


def _draw_worst(
    analysis: Analysis, index: int, evaluated: Evaluated, unread: list[str]
) -> dict[str, Any]:
    """An image's caption and, as JPEG, its objects and detections; adds to ``unread``."""
    entry = analysis.images[index]
    path = evaluated.files[entry["id"]]
    shown: dict[str, Any] = {
        "file": entry["file_name"],
        "id": entry["id"],
        **errors_of(analysis, index),
    }
    found, lost = shown["found"], shown["missed"] + shown["confused"]
    extra = shown["false"] + shown["duplicate"] + shown["confused"]
    shown["errors"] = sum(shown[kind] for kind in ("missed", "false", "duplicate", "confused"))
    shown["f1"] = 2 * found / (2 * found + lost + extra)
    try:
        image = read_image(str(path), "RGB")
        if image.shape[:2] != (entry["height"], entry["width"]):
            raise DatasetError(
                f"{path} has {image.shape[1]} x {image.shape[0]} px, but {evaluated.truth_file} "
                f"says {entry['width']} x {entry['height']}"
            )
    except DatasetError as error:
        if path.is_file():  # else it is listed as missing
            unread.append(str(error))
        return {**shown, "problem": str(error)}
    scale = min(enlargement(image), _PANE / max(image.shape[:2]))
    m, kinds = analysis.matching, analysis.kinds
    objects = np.flatnonzero(m.object_images == index)
    rows = np.flatnonzero((m.images == index) & (kinds.detections != Kind.BELOW))[::-1]
    panes = {
        "truth": (m.object_boxes[objects], m.object_labels[objects], kinds.objects[objects], None),
        "detected": (m.boxes[rows], m.labels[rows], kinds.detections[rows], m.scores[rows]),
    }
    for pane, (boxes, labels, kind, scores) in panes.items():
        order = np.argsort(kind != Kind.FOUND, kind="stable")  # errors on top
        texts = [_text(analysis, labels[i], kind[i], scores, i, len(kind)) for i in order]
        colors = [COLORS[Kind(kind[i])] for i in order]
        shown[pane] = _jpeg(draw_marked(image, boxes[order], texts, colors, scale=scale))
    return shown


def _text(
    analysis: Analysis, label: int, kind: int, scores: np.ndarray | None, row: int, boxes: int
) -> str:
    if boxes > _CROWDED and kind == Kind.FOUND:
        return ""
    name = analysis.class_names[label][: plots.LONGEST]
    return name if scores is None else f"{name} {100 * scores[row]:.0f}%"


def _jpeg(picture: np.ndarray) -> str:
    """A (H, W, 3) uint8 RGB picture as the address of an image in a page."""
    data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])[1].tobytes()
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"


def _page(
    analysis: Analysis,
    facts: Mapping[str, Any],
    pictures: Sequence[Mapping[str, Any]],
    problems: Sequence[str],
) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _number
    has_objects = bool(facts["data_set"]["objects"])
    matrix, folded = plots.confusion_matrix(analysis)
    drawn = {
        "f1": plots.f1_by_threshold(analysis) if has_objects else None,
        "pr": plots.precision_recall(analysis) if has_objects else None,
        "iou": plots.ap_by_iou(analysis) if has_objects else None,
        "matrix": matrix,
        "reliability": plots.reliability(analysis),
    }
    return environment.get_template("report.html").render(
        facts=facts,
        summary=summary(analysis),
        has_objects=has_objects,
        plots={name: svg and Markup(svg) for name, svg in drawn.items()},
        folded=folded,
        pairs=[
            (analysis.class_names[a], analysis.class_names[b], times)
            for a, b, times in analysis.confusions(_PAIRS)
        ],
        pictures=pictures,
        problems=problems[:_LISTED],
        more_problems=len(problems[_LISTED:]),
        colors={kind.name.lower(): color for kind, color in COLORS.items()},
        bins=BINS,
    )


def _number(value: float | None, digits: int = 1) -> str:
    """A number for a table; a dash for what is not known."""
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"
