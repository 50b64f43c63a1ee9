"""The evaluators that ``TEST.EVALUATOR`` names, as Detectron2's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_dict
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from onenet.data.annotations import sorted_categories
from onenet.data.coco_json import parse_coco_json
from onenet.evaluation.registry import Evaluator, choose_evaluator
from onenet.evaluation.report import report
from onenet.evaluation.report_facts import Evaluated
from onenet.evaluation.results import RESULTS_FILE, results_folder, to_coco
from onenet.evaluation.truth import counted, read_truth
from onenet.structures import Detections
from onenet.visualization.report_page import write_report

from .datasets import is_ours
from .weights import fetch_weights


def build_evaluator(cfg: Any, dataset_name: str, output_dir: str) -> DatasetEvaluator:
    """The evaluator of ``TEST.EVALUATOR``.

    Args:
        output_dir: for ``coco_instances_results.json``.

    Raises:
        DatasetError: the data set's file is not COCO data.
    """
    return ScoreEvaluator(choose_evaluator(cfg), dataset_name, Path(output_dir))


class ScoreEvaluator(DatasetEvaluator):
    """Gives an evaluator's metrics, and ``duplicates``, in its group; nothing without objects.

    Args:
        evaluator: of the core.
        dataset_name: registered; Detectron2 converts what is not a COCO file.
        output_dir: for ``coco_instances_results.json``.

    Raises:
        DatasetError: the data set's file is not COCO data.
    """

    def __init__(self, evaluator: Evaluator, dataset_name: str, output_dir: Path) -> None:
        self.evaluator, self.name, self.output_dir = evaluator, dataset_name, output_dir
        self.truth = _truth_of(dataset_name)
        self.category_ids = _category_ids(dataset_name, self.truth)
        self.reset()

    def reset(self) -> None:
        self.results: list[dict[str, Any]] = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        for image, output in zip(inputs, outputs, strict=True):
            found = output["instances"].to("cpu")
            detections = Detections(found.pred_boxes.tensor, found.scores, found.pred_classes)
            self.results.extend(to_coco(image["image_id"], detections, self.category_ids))

    def evaluate(self) -> dict[str, dict[str, float]]:
        """See Detectron2.

        Raises:
            WriteError: the results cannot be written; the metrics are in the log.
        """
        shares = comm.gather(self.results)
        if not comm.is_main_process():
            return {}
        results = [result for share in shares for result in share]
        path = self.output_dir / RESULTS_FILE
        metrics = report(self.evaluator, self.name, self.truth, results, path)
        group = f"{self.evaluator.group}/"
        found = {name.removeprefix(group): value for name, value in metrics.items()}
        return {self.evaluator.group: found} if found else {}


def report_all(cfg: Any) -> None:
    """Write the report of every test set beside its detections, which are there already."""
    weights = Path(fetch_weights(cfg.MODEL.WEIGHTS)) if cfg.MODEL.WEIGHTS else None
    for name in cfg.DATASETS.TEST:
        folder = results_folder(cfg.OUTPUT_DIR, name, cfg.DATASETS.TEST)
        evaluated = Evaluated(
            name=name,
            truth=_truth_of(name),
            truth_file=Path(MetadataCatalog.get(name).get("json_file") or name),
            results_file=folder / RESULTS_FILE,
            files={e["image_id"]: Path(e["file_name"]) for e in DatasetCatalog.get(name)},
            weights=weights,
        )
        write_report(evaluated, folder)


def _category_ids(dataset_name: str, truth: dict[str, Any]) -> list[int]:
    """The id of each label, which may be in any order where Detectron2's user says so."""
    label_of = MetadataCatalog.get(dataset_name).get("thing_dataset_id_to_contiguous_id")
    if label_of:
        return sorted(label_of, key=label_of.get)
    return [category["id"] for category in sorted_categories(truth)]


def _truth_of(dataset_name: str) -> dict[str, Any]:
    """See :func:`~onenet.evaluation.truth.counted`."""
    json_file = MetadataCatalog.get(dataset_name).get("json_file")
    if not json_file:
        return counted(convert_to_coco_dict(dataset_name))
    file = Path(PathManager.get_local_path(json_file))
    if is_ours(dataset_name):
        return read_truth(file)
    # Detectron2 has read this file, and wants less of its entries.
    return counted(parse_coco_json(file, need_annotations=False))
