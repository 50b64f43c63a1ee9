"""CrowdHuman's metrics as an evaluator of Detectron2."""

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
from onenet.evaluation.crowdhuman import evaluate_crowdhuman
from onenet.evaluation.duplicates import detections_per_object, duplicates_line
from onenet.evaluation.results import RESULTS_FILE, to_coco
from onenet.files import write_whole
from onenet.structures import Detections

logger = logging.getLogger(__name__)


class CrowdHumanEvaluator(DatasetEvaluator):
    """Gives AP, mMR and recall (:mod:`onenet.evaluation.crowdhuman`), 0…100, as ``crowdhuman``.

    Args:
        dataset_name: registered, with a COCO file of one class.
        output_dir: for ``coco_instances_results.json``.

    Raises:
        DatasetError: the data set has no COCO file.
    """

    def __init__(self, dataset_name: str, output_dir: str) -> None:
        json_file = MetadataCatalog.get(dataset_name).get("json_file")
        if not json_file:
            raise DatasetError(
                f"Data set {dataset_name!r} has no COCO file. TEST.EVALUATOR 'crowdhuman' reads "
                "the ignored regions from one: give the data set as ANNOTATIONS.json:IMAGE_FOLDER."
            )
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
        metrics = evaluate_crowdhuman(self.truth, results).percent()
        duplicates = detections_per_object(self.truth["annotations"], results)
        logger.info(
            "%d images, %d detections in %s\n%s\n\n%s",
            len(self.truth["images"]),
            len(results),
            path,
            create_small_table(metrics),
            duplicates_line(duplicates),
        )
        return {"crowdhuman": {**metrics, "duplicates": duplicates}}
