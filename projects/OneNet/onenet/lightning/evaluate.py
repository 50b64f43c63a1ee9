"""Detecting in every image of a data set, and scoring the detections."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from onenet.data.dataset import CocoDetection
from onenet.detector import OneNet
from onenet.evaluation.registry import choose_evaluator
from onenet.evaluation.report import report
from onenet.evaluation.results import RESULTS_FILE, to_coco
from onenet.evaluation.truth import read_truth
from onenet.inference.postprocess import to_image
from onenet.inference.tiles import tiles_line, whole_images
from onenet.structures import Detections
from onenet.training.distributed import gather, processes, rank
from onenet.training.oom import memory_errors, testing_advice
from onenet.training.progress import progress as with_bar
from onenet.training.validation import loss_names, mean_losses

from .datasets import LossDataset
from .items import TestItem, TrainItem
from .loader import build_loss_loader, build_test_loader
from .predictor import Predictor

logger = logging.getLogger(__name__)


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
        On rank 0 the metrics of :func:`~onenet.evaluation.report.report`, empty if there is nothing
        to find; ``None`` on other ranks.

    Raises:
        OutOfMemoryError: names the settings that need less.
        WriteError: the results cannot be written; the metrics are in the log.
    """
    first = rank() == 0
    tiled = bool(cfg.TEST.TILES)
    source = whole_images(cfg) if tiled else cfg
    loader = build_test_loader(source, dataset, rank=rank(), world_size=processes())
    detect = Tiled(cfg, model) if tiled else model
    results = []
    with memory_errors(model, lambda: testing_advice(cfg)):
        for item, detections in detect_all(detect, loader, progress=first):
            results.extend(to_coco(item.image_id, detections, dataset.category_ids))
    if tiled:
        logger.info(tiles_line(cfg, sum(gather(detect.merged))))
    results = [result for share in gather(results) for result in share]
    if not first:
        return None
    results.sort(key=lambda result: result["image_id"])
    truth = read_truth(dataset.source.json_file)
    name, path = dataset.source.name, output_dir / RESULTS_FILE
    return report(choose_evaluator(cfg), name, truth, results, path)


def losses(cfg: Any, model: nn.Module, dataset: CocoDetection, progress: float) -> dict[str, float]:
    """:func:`~onenet.training.validation.mean_losses` of a data set; all processes call this.

    Args:
        model: in training form, on its device.
        progress: how much of the training is done.

    Returns:
        Empty if the data set has no objects.
    """
    if dataset.num_objects == 0:
        return {}
    loader = build_loss_loader(cfg, dataset, rank=rank(), world_size=processes())
    loader = with_bar(loader, shows=rank() == 0, desc="losses", unit="image")
    with memory_errors(model, lambda: testing_advice(cfg)):
        items = (item for items in loader for item in items)
        return mean_losses(model, items, lambda item: _losses(model, item), progress=progress)


def names_of_losses(cfg: Any, model: nn.Module, dataset: CocoDetection) -> list[str]:
    """The names that :func:`losses` gives, found with the first image."""
    item = LossDataset.of(cfg, dataset)[0]
    return loss_names(model, item, lambda item: _losses(model, item))


def _losses(model: nn.Module, item: TrainItem) -> dict[str, Tensor]:
    return model([item.image], [item.targets])


@torch.inference_mode()
def detect_all(model: OneNet, loader: Any, *, progress: bool = False) -> Any:
    """Yield every :class:`TestItem` of a loader with detections in px of the original image."""
    training = model.training
    model.eval()
    try:
        batches = with_bar(loader, shows=progress, desc="evaluating", unit="batch")
        for items in batches:
            found = model([item.image for item in items])
            for item, detections in zip(items, found, strict=True):
                yield item, to_original(item, detections)
    finally:
        model.train(training)


class Tiled(nn.Module):
    """A prepared model that detects in the tiles of images which no loader has resized.

    Args:
        cfg: its ``TEST.TILES`` is not 0.
        model: of this engine.

    Attributes:
        merged: how many boxes went into others, so far.
    """

    def __init__(self, cfg: Any, model: nn.Module) -> None:
        super().__init__()
        self.model, self.predictor = model, Predictor.around(cfg, model)
        self.merged = 0
        self.training = model.training

    def forward(self, images: list[Tensor]) -> list[Detections]:
        return [self._detect(image.permute(1, 2, 0).numpy()) for image in images]

    def _detect(self, pixels: np.ndarray) -> Detections:
        found = self.predictor.predict_tiles(pixels[..., ::-1] if self.predictor.bgr else pixels)
        self.merged += found.merged
        return Detections(*map(torch.from_numpy, (found.boxes, found.scores, found.labels)))


def to_original(item: TestItem, detections: Detections) -> Detections:
    """Detections on the CPU, in px of the original image."""
    size = tuple(item.image.shape[-2:])
    return to_image(detections.to("cpu"), size, (item.height, item.width))
