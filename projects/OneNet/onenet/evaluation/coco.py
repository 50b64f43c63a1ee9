"""COCO's AP of boxes, by faster-coco-eval, which gives pycocotools' numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from onenet.data.annotations import sorted_categories

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
OF_CLASS = "AP-"  # what the metric of a class starts with
LIMIT = 100  # detections of an image that COCO's AP counts


def average_precision(
    truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], max_detections: int = LIMIT
) -> dict[str, float]:
    """COCO's AP, overall and by class.

    Args:
        truth: see :func:`~.truth.counted`; ``area`` and ``iscrowd`` may be missing.
        results: detections in COCO's results format; finite.
        max_detections: how many detections of an image count, the best ones; at least COCO's 100.

    Returns:
        0…100, NaN without ground truth: the six of ``METRICS``, then ``AP-CLASS`` for each class,
        by :func:`unique_names`.
    """
    categories = sorted_categories(dict(truth))
    # The library wants numbers for ids, and takes a match with annotation 0 for no match.
    number = {image["id"]: n for n, image in enumerate(truth["images"], start=1)}
    content = {
        "images": [
            {"id": number[i["id"]], "width": i["width"], "height": i["height"]}
            for i in truth["images"]
        ],
        "categories": categories,
        "annotations": [
            {
                "id": n,
                "image_id": number[a["image_id"]],
                "category_id": a["category_id"],
                "bbox": a["bbox"],
                "area": a.get("area", a["bbox"][2] * a["bbox"][3]),
                "iscrowd": int(a.get("iscrowd", 0)),
            }
            for n, a in enumerate(truth["annotations"], start=1)
        ],
    }
    objects = COCO(content, print_function=_quiet)
    if results:
        found = objects.loadRes([{**r, "image_id": number[r["image_id"]]} for r in results])
    else:  # loadRes refuses an empty list
        found = COCO({**content, "annotations": []}, print_function=_quiet)
    evaluation = COCOeval_faster(objects, found, "bbox", print_function=_quiet)
    evaluation.params.imgIds = list(number.values())
    evaluation.params.catIds = [category["id"] for category in categories]
    evaluation.params.maxDets = [1, 10, max(LIMIT, max_detections)]
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
    metrics = {name: _mean(values) for name, values in parts.items()}
    for k, name in enumerate(unique_names(categories)):
        metrics[OF_CLASS + name] = _mean(precision[:, :, k, 0])
    return metrics


def unique_names(categories: Sequence[Mapping[str, Any]]) -> list[str]:
    """A name for each class: its own or, where several share one, with its category id.

    Args:
        categories: of a COCO file; their ids differ.
    """
    names = [category["name"] for category in categories]
    while repeated := {name for name, count in Counter(names).items() if count > 1}:
        names = [
            f"{name} (id {category['id']})" if name in repeated else name
            for name, category in zip(names, categories, strict=True)
        ]
    return names


def _mean(precision: np.ndarray) -> float:
    known = precision[precision > -1]
    return float(100 * known.mean()) if known.size else float("nan")


def _quiet(*_: Any) -> None:
    """Drops what the evaluation prints."""
