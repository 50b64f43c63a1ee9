"""The evaluators that ``TEST.EVALUATOR`` names, for Detectron2.

As in the embedded engine, files for detection alone may lack areas and crowd flags.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
from typing import Any

from detectron2.evaluation import COCOEvaluator, DatasetEvaluator

from onenet.evaluation.duplicates import detections_per_object, duplicates_line
from onenet.evaluation.registry import choose_evaluator
from onenet.evaluation.results import complete_annotations

from .score import ScoreEvaluator

logger = logging.getLogger(__name__)
COCO_LIMIT = 100  # detections of an image that COCO's AP counts


def build_evaluator(cfg: Any, dataset_name: str, output_dir: str) -> DatasetEvaluator:
    """The evaluator of ``TEST.EVALUATOR``; Detectron2's own for COCO's AP of boxes.

    AP works for data sets that are not COCO files, too: Detectron2 converts them.

    Args:
        output_dir: for ``coco_instances_results.json``.
    """
    evaluator = choose_evaluator(cfg)
    if evaluator.score is not None:
        return ScoreEvaluator(evaluator, dataset_name, output_dir)
    limit = max(COCO_LIMIT, cfg.TEST.DETECTIONS_PER_IMAGE)
    counting = CountingCOCOEvaluator(
        dataset_name, ("bbox",), output_dir=output_dir, max_dets_per_image=limit
    )
    _complete(counting._coco_api)
    return counting


class CountingCOCOEvaluator(COCOEvaluator):
    """COCO's metrics, and ``duplicates``.

    See :func:`~onenet.evaluation.duplicates.detections_per_object`.
    """

    def _derive_coco_results(
        self, coco_eval: Any, iou_type: str, class_names: list[str] | None = None
    ) -> dict[str, float]:
        metrics = super()._derive_coco_results(coco_eval, iou_type, class_names)
        duplicates = math.nan
        if coco_eval is not None:  # as it is where there are no detections
            content = (coco_eval.cocoGt.dataset, coco_eval.cocoDt.dataset)
            duplicates = detections_per_object(*(c["annotations"] for c in content))
        logger.info(duplicates_line(duplicates))
        return {**metrics, "duplicates": duplicates}


def _complete(coco: Any) -> None:
    """Complete a COCO file's annotations and index them again."""
    complete_annotations(coco.dataset.get("annotations", ()))
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
