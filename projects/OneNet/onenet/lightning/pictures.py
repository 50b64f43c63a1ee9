"""A few validation images with what the model sees in them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Subset

from onenet.data.dataset import CocoDetection
from onenet.data.images import read_image
from onenet.detector import OneNet
from onenet.structures import Targets
from onenet.visualization.boxes import draw_comparison

from .evaluate import detect_all
from .loader import TestDataset, build_test_transform


def validation_pictures(
    cfg: Any, model: OneNet, dataset: CocoDetection, count: int = 4, threshold: float = 0.3
) -> dict[str, np.ndarray]:
    """Ground truth and detections side by side, for images spread over the data set.

    Args:
        count: how many images at most.
        threshold: lowest score that is drawn.

    Returns:
        (H, W, 3) uint8 RGB pictures by the name of the image.
    """
    chosen = torch.linspace(0, len(dataset) - 1, min(count, len(dataset))).long().tolist()
    images = TestDataset(dataset, build_test_transform(cfg), image_format=cfg.INPUT.FORMAT)
    loader = DataLoader(Subset(images, chosen), collate_fn=list)
    pictures = {}
    for index, (item, detections) in zip(chosen, detect_all(model, loader), strict=True):
        record = dataset.record(index)
        targets = Targets(
            torch.from_numpy(record.boxes),
            torch.from_numpy(record.labels),
            (record.height, record.width),
        )
        picture = draw_comparison(
            read_image(item.file_name, "RGB"),
            detections[detections.scores >= threshold],
            targets,
            dataset.class_names,
        )
        pictures[f"validation/{item.image_id}"] = picture
    return pictures
