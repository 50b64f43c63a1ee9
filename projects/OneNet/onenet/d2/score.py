"""The evaluators of the core (:mod:`onenet.evaluation.registry`) as one of Detectron2's."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.logger import create_small_table

from onenet.data.annotations import sorted_categories
from onenet.data.coco_json import read_coco_json
from onenet.errors import DatasetError
from onenet.evaluation.duplicates import detections_per_object, duplicates_line
from onenet.evaluation.registry import Evaluator
from onenet.evaluation.results import RESULTS_FILE, to_coco
from onenet.files import write_whole
from onenet.structures import Detections

logger = logging.getLogger(__name__)


class ScoreEvaluator(DatasetEvaluator):
    """Gives an evaluator's metrics, and ``duplicates``, in its group.

    Args:
        evaluator: its ``score`` is not ``None``.
        dataset_name: registered, with a COCO file.
        output_dir: for ``coco_instances_results.json``.

    Raises:
        DatasetError: the data set has no COCO file.
    """

    def __init__(self, evaluator: Evaluator, dataset_name: str, output_dir: str) -> None:
        json_file = MetadataCatalog.get(dataset_name).get("json_file")
        if not json_file:
            raise DatasetError(
                f"Data set {dataset_name!r} has no COCO file, which TEST.EVALUATOR reads for the "
                f"metrics {evaluator.group!r}; give the data set as ANNOTATIONS.json:IMAGE_FOLDER."
            )
        self.evaluator = evaluator
        self.truth = read_coco_json(Path(json_file))
        self.category_ids = [category["id"] for category in sorted_categories(self.truth)]
        self.output_dir = Path(output_dir)
        self.reset()

    def reset(self) -> None:
        self.results: list[dict[str, Any]] = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        for image, output in zip(inputs, outputs, strict=True):
            found = output["instances"].to("cpu")
            detections = Detections(found.pred_boxes.tensor, found.scores, found.pred_classes)
            self.results.extend(to_coco(image["image_id"], detections, self.category_ids))

    def evaluate(self) -> dict[str, dict[str, float]]:
        shares = comm.gather(self.results)
        if not comm.is_main_process():
            return {}
        results = [result for share in shares for result in share]
        path = self.output_dir / RESULTS_FILE
        write_whole(path, json.dumps(results).encode())
        metrics = self.evaluator.score(self.truth, results)
        duplicates = detections_per_object(self.truth["annotations"], results)
        logger.info(
            "%d images, %d detections in %s\n%s\n\n%s",
            len(self.truth["images"]),
            len(results),
            path,
            create_small_table(metrics),
            duplicates_line(duplicates),
        )
        return {self.evaluator.group: {**metrics, "duplicates": duplicates}}
