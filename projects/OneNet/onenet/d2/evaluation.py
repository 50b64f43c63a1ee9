"""Detectron2's COCO evaluation, with the embedded engine's tolerance for detection-only files."""

from __future__ import annotations

import contextlib
import io
from typing import Any

from detectron2.evaluation import COCOEvaluator

COCO_LIMIT = 100  # detections of an image that COCO's AP counts


def build_evaluator(cfg: Any, dataset_name: str, output_dir: str) -> COCOEvaluator:
    """COCO's AP of boxes, also for data sets that are not COCO files: Detectron2 converts them.

    Args:
        output_dir: for ``coco_instances_results.json``.
    """
    limit = max(COCO_LIMIT, cfg.TEST.DETECTIONS_PER_IMAGE)
    evaluator = COCOEvaluator(
        dataset_name, ("bbox",), output_dir=output_dir, max_dets_per_image=limit
    )
    _complete(evaluator._coco_api)
    return evaluator


def _complete(coco: Any) -> None:
    """Give annotations what COCO's evaluation needs and files for detection often leave out."""
    for number, annotation in enumerate(coco.dataset.get("annotations", ()), start=1):
        # The evaluation takes a match with id 0 for none.
        annotation["id"] = number
        annotation.setdefault("area", annotation["bbox"][2] * annotation["bbox"][3])
        annotation.setdefault("iscrowd", 0)
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
