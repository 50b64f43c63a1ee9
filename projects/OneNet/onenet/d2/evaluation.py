"""The evaluators that ``TEST.EVALUATOR`` names, as Detectron2's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.datasets.coco import convert_to_coco_dict
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from torch import Tensor, nn

from onenet.data.annotations import sorted_categories
from onenet.data.coco_json import parse_coco_json
from onenet.detector import DenseDetector
from onenet.errors import ConfigError
from onenet.evaluation.registry import Evaluator, choose_evaluator
from onenet.evaluation.report import directions, report
from onenet.evaluation.report_facts import Evaluated
from onenet.evaluation.results import RESULTS_FILE, results_folder, set_prefix, to_coco
from onenet.evaluation.truth import counted, read_truth
from onenet.structures import Detections, Targets
from onenet.training.oom import memory_errors, testing_advice
from onenet.training.validation import log_losses, loss_names, mean_losses
from onenet.visualization.report_page import write_report

from .datasets import is_ours
from .loader import LossMapper, build_loss_loader
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


def named(results: Mapping[str, Any], test_sets: Sequence[str]) -> dict[str, float]:
    """What ``Trainer.test`` gives, by the names that the embedded engine gives it.

    Args:
        test_sets: ``DATASETS.TEST``.
    """
    sets = list(dict.fromkeys(test_sets))
    parts = {sets[0]: results} if len(sets) == 1 else results
    return {
        f"{set_prefix(name, sets)}{group}/{title}": value
        for name, groups in parts.items()
        for group, metrics in groups.items()
        for title, value in metrics.items()
    }


def all_losses(cfg: Any, model: nn.Module, progress: float) -> dict[str, float]:
    """:func:`~onenet.training.validation.mean_losses` of every test set, which the log gets.

    Args:
        model: without what several processes wrap around it.
        progress: how much of the training is done.
    """
    found: dict[str, float] = {}
    sets = list(dict.fromkeys(cfg.DATASETS.TEST))
    for name in sets:
        means = {}
        if _has_targets(name):
            loader = build_loss_loader(cfg, name)
            with memory_errors(model, lambda: testing_advice(cfg)):
                items = (item for items in loader for item in items)
                means = mean_losses(
                    model, items, lambda item: _losses(model, item), progress=progress
                )
        log_losses(name, means)
        found |= {set_prefix(name, sets) + title: value for title, value in means.items()}
    return found


def all_directions(cfg: Any, model: nn.Module) -> dict[str, bool]:
    """The metrics that an evaluation in training gives, and whether lower is better.

    The first process calls this.
    """
    found: dict[str, bool] = {}
    sets = list(dict.fromkeys(cfg.DATASETS.TEST))
    for name in sets:
        scored = directions(choose_evaluator(cfg), _truth_of(name))
        if scored and cfg.TEST.LOSS:
            record = get_detection_dataset_dicts(name, filter_empty=False)[0]
            item = LossMapper(cfg)(record)
            names = loss_names(model, item, lambda item: _losses(model, item))
            scored |= dict.fromkeys(names, True)
        found |= {set_prefix(name, sets) + title: lower for title, lower in scored.items()}
    return found


def check_losses(cfg: Any, model: nn.Module) -> None:
    """Raise ``ConfigError`` for ``TEST.LOSS`` with a model of Detectron2's own."""
    if cfg.TEST.LOSS and not isinstance(model, DenseDetector):
        raise ConfigError(
            f"TEST.LOSS is True; expected False for MODEL.META_ARCHITECTURE "
            f"{cfg.MODEL.META_ARCHITECTURE}, which is Detectron2's own"
        )


def _has_targets(name: str) -> bool:
    records = get_detection_dataset_dicts(name, filter_empty=False)
    return any(not a.get("iscrowd", 0) for r in records for a in r.get("annotations", ()))


def _losses(model: nn.Module, item: tuple[Tensor, Targets]) -> Any:
    image, targets = item
    # Not the meta-architecture's own, which draws pictures of training.
    return DenseDetector.forward(model, [image], [targets])
