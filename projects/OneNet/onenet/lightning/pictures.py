"""Pictures of a few validation images, with objects and detections."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Subset

from onenet.data.dataset import CocoDetection, spread_evenly
from onenet.data.images import read_image
from onenet.detector import OneNet
from onenet.visualization.boxes import draw_comparison

from .datasets import TestDataset, build_test_transform
from .evaluate import detect_all


def validation_pictures(
    cfg: Any, model: OneNet, dataset: CocoDetection, count: int = 4, threshold: float = 0.3
) -> dict[str, np.ndarray]:
    """Ground truth and detections side by side, for images spread over the data set.

    Args:
        count: most images to draw.
        threshold: lowest score that is drawn.

    Returns:
        (H, W, 3) uint8 RGB pictures by the name of the image.
    """
    chosen = spread_evenly(count, len(dataset))
    images = TestDataset(dataset, build_test_transform(cfg), image_format=cfg.INPUT.FORMAT)
    loader = DataLoader(Subset(images, chosen), collate_fn=list)
    pictures = {}
    for index, (item, detections) in zip(chosen, detect_all(model, loader), strict=True):
        picture = draw_comparison(
            read_image(item.file_name, "RGB"),
            detections[detections.scores >= threshold],
            dataset.record(index).targets(),
            dataset.class_names,
        )
        pictures[f"validation/{item.image_id}"] = picture
    return pictures
