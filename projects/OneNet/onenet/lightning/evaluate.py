"""Metrics of a model on a data set: CrowdHuman's, or COCO's AP.

AP is computed by faster-coco-eval, which gives pycocotools' numbers.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from faster_coco_eval import COCO, COCOeval_faster
from tabulate import tabulate
from tqdm import tqdm

from onenet.data.coco_json import read_coco_json
from onenet.data.dataset import CocoDetection
from onenet.detector import OneNet
from onenet.evaluation.duplicates import detections_per_object, duplicates_line
from onenet.evaluation.registry import choose_evaluator
from onenet.evaluation.results import RESULTS_FILE, complete_annotations, to_coco
from onenet.files import write_whole
from onenet.inference.postprocess import to_image
from onenet.structures import Detections
from onenet.training.distributed import gather, processes, rank
from onenet.training.oom import memory_errors, testing_advice

from .items import TestItem
from .loader import build_test_loader

logger = logging.getLogger(__name__)
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def evaluate(
    cfg: Any, model: OneNet, dataset: CocoDetection, output_dir: Path
) -> dict[str, float] | None:
    """Detect in every image of a data set and score the result.

    All processes call this, each detects in its share of the images; rank 0 writes
    ``coco_instances_results.json`` and computes the metrics.

    Args:
        model: on its device; its training mode is restored afterwards.
        output_dir: for the results file.

    Returns:
        On rank 0 the metrics of :func:`score`; ``None`` on other ranks.

    Raises:
        OutOfMemoryError: names the settings that need less.
        WriteError: the results cannot be written; the metrics are in the log.
    """
    first = rank() == 0
    loader = build_test_loader(cfg, dataset, rank=rank(), world_size=processes())
    results = []
    with memory_errors(model, lambda: testing_advice(cfg)):
        for item, detections in detect_all(model, loader, progress=first):
            results.extend(to_coco(item.image_id, detections, dataset.category_ids))
    results = [result for share in gather(results) for result in share]
    if not first:
        return None
    results.sort(key=lambda result: result["image_id"])
    path = output_dir / RESULTS_FILE
    metrics, tables = score(cfg, dataset, results)
    try:
        write_whole(path, json.dumps(results).encode())
    finally:  # the metrics took long to compute
        logger.info(
            "%s: %d images, %d detections in %s\n%s",
            dataset.source.name,
            len(dataset),
            len(results),
            path,
            tables,
        )
    return metrics


@torch.inference_mode()
def detect_all(model: OneNet, loader: Any, *, progress: bool = False) -> Any:
    """Yield every :class:`TestItem` of a loader with detections in px of the original image."""
    training = model.training
    model.eval()
    try:
        batches = tqdm(
            loader, desc="evaluating", unit="batch", leave=False, disable=None if progress else True
        )
        for items in batches:
            found = model([item.image for item in items])
            for item, detections in zip(items, found, strict=True):
                yield item, to_original(item, detections)
    finally:
        model.train(training)


def to_original(item: TestItem, detections: Detections) -> Detections:
    """Detections on the CPU, in px of the original image."""
    size = tuple(item.image.shape[-2:])
    return to_image(detections.to("cpu"), size, (item.height, item.width))


def score(
    cfg: Any, dataset: CocoDetection, results: Sequence[dict[str, Any]]
) -> tuple[dict[str, float], str]:
    """Score detections in the results format (:func:`to_coco`) as ``TEST.EVALUATOR`` says.

    Returns:
        The metrics, and tables of them. Metrics are 0…100, NaN without ground truth: ``bbox/AP``,
        ``bbox/AP50`` … and ``bbox/AP-CLASS``; or ``crowdhuman/AP``, ``crowdhuman/mMR`` and
        ``crowdhuman/Recall``. ``bbox/duplicates`` or ``crowdhuman/duplicates`` is at least 1, see
        :func:`~onenet.evaluation.duplicates.detections_per_object`.
    """
    truth = read_coco_json(dataset.source.json_file)
    evaluator = choose_evaluator(cfg)
    if evaluator.score is None:
        metrics = average_precision(dataset, results, cfg.TEST.DETECTIONS_PER_IMAGE)
        tables = ap_tables(metrics)
    else:
        found = evaluator.score(truth, results)
        tables = _table([[f"{value:.2f}" for value in found.values()]], list(found))
        metrics = {f"{evaluator.group}/{name}": value for name, value in found.items()}
    duplicates = detections_per_object(truth["annotations"], results)
    metrics[f"{evaluator.group}/duplicates"] = duplicates
    return metrics, f"{tables}\n\n{duplicates_line(duplicates)}"


def average_precision(
    dataset: CocoDetection, results: Sequence[dict[str, Any]], max_detections: int = 100
) -> dict[str, float]:
    """COCO's AP of detections in the results format.

    Args:
        results: see :func:`to_coco`.
        max_detections: how many detections of an image count, the best ones; at least COCO's 100.

    Returns:
        The metrics of COCO, see :func:`score`.
    """
    truth = _ground_truth(dataset)
    names = [f"bbox/AP-{name}" for name in dataset.class_names]
    if results:
        found = truth.loadRes([dict(r) for r in results])
    else:  # loadRes refuses an empty list
        logger.warning("%s: not a single detection, so AP is 0", dataset.source.name)
        found = COCO({**truth.dataset, "annotations": []}, print_function=_quiet)
    evaluation = COCOeval_faster(truth, found, "bbox", print_function=_quiet)
    evaluation.params.imgIds = dataset.image_ids.tolist()
    evaluation.params.catIds = list(dataset.category_ids)
    evaluation.params.maxDets = [1, 10, max(100, max_detections)]
    evaluation.evaluate()
    evaluation.accumulate()
    # Thresholds × recalls × classes × areas × limits; -1 where there is no ground truth.
    precision = evaluation.eval["precision"][..., -1]
    parts = {
        "AP": precision[..., 0],
        "AP50": precision[0, ..., 0],
        "AP75": precision[5, ..., 0],
        "APs": precision[..., 1],
        "APm": precision[..., 2],
        "APl": precision[..., 3],
    }
    metrics = {f"bbox/{name}": _mean(values) for name, values in parts.items()}
    for i, name in enumerate(names):
        metrics[name] = _mean(precision[:, :, i, 0])
    return metrics


def _ground_truth(dataset: CocoDetection) -> COCO:
    content = json.loads(dataset.source.json_file.read_bytes())
    complete_annotations(content["annotations"])
    return COCO(content, print_function=_quiet)


def _mean(precision: np.ndarray) -> float:
    known = precision[precision > -1]
    return float(100 * known.mean()) if known.size else float("nan")


def _quiet(*_: Any) -> None:
    """Drops what the evaluation prints."""


def ap_tables(metrics: dict[str, float]) -> str:
    """The metrics as two tables, overall and by class."""
    overall = _table([[f"{metrics[f'bbox/{name}']:.2f}" for name in METRICS]], METRICS)
    prefix = "bbox/AP-"
    cells = [
        (key.removeprefix(prefix), f"{value:.2f}")
        for key, value in metrics.items()
        if key.startswith(prefix)
    ]
    columns = min(3, len(cells))
    rows = [sum(cells[i : i + columns], ()) for i in range(0, len(cells), columns)]
    return f"{overall}\n\n{_table(rows, ['class', 'AP'] * columns)}"


def _table(rows: list[Any], headers: Sequence[str]) -> str:
    align = ["left" if name == "class" else "right" for name in headers]
    # Cells stay text: a class may be named "007" or "1e3".
    return tabulate(rows, headers, tablefmt="pipe", colalign=align, disable_numparse=True)
