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
    precision = precisions(truth, results, max_detections)
    parts = {
        "AP": precision[..., 0],
        "AP50": precision[0, ..., 0],
        "AP75": precision[5, ..., 0],
        "APs": precision[..., 1],
        "APm": precision[..., 2],
        "APl": precision[..., 3],
    }
    metrics = {name: mean_precision(values) for name, values in parts.items()}
    for k, name in enumerate(unique_names(sorted_categories(dict(truth)))):
        metrics[OF_CLASS + name] = mean_precision(precision[:, :, k, 0])
    return metrics


def precisions(
    truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], max_detections: int = LIMIT
) -> np.ndarray:
    """Precision at every IoU threshold, recall, class and size; arguments as above.

    Returns:
        (10, 101, K, 4) in [0, 1], -1 where there is no ground truth: IoU 0.5, 0.55 … 0.95, recall
        0, 0.01 … 1, classes by :func:`~onenet.data.annotations.sorted_categories`, and objects of
        every size, small, medium and large ones.
    """
    content, found = renumbered(truth, results)
    objects = COCO(content, print_function=_quiet)
    if found:
        detections = objects.loadRes(found)
    else:  # loadRes refuses an empty list
        detections = COCO({**content, "annotations": []}, print_function=_quiet)
    evaluation = COCOeval_faster(objects, detections, "bbox", print_function=_quiet)
    evaluation.params.imgIds = [image["id"] for image in content["images"]]
    evaluation.params.catIds = [category["id"] for category in content["categories"]]
    evaluation.params.maxDets = [1, 10, max(LIMIT, max_detections)]
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval["precision"][..., -1]


def renumbered(
    truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Ground truth and detections as COCO's evaluation wants them.

    It wants numbers for the ids of images, and takes a match with annotation 0 for no match.

    Returns:
        The ground truth with images and annotations numbered from 1 in their order, and the
        detections with these images.
    """
    number = {image["id"]: n for n, image in enumerate(truth["images"], start=1)}
    content = {
        "images": [
            {"id": number[i["id"]], "width": i["width"], "height": i["height"]}
            for i in truth["images"]
        ],
        "categories": sorted_categories(dict(truth)),
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
    return content, [{**r, "image_id": number[r["image_id"]]} for r in results]


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


def mean_precision(precision: np.ndarray) -> float:
    """Mean of :func:`precisions`, or of a part of them, in per cent; NaN without ground truth."""
    known = precision[precision > -1]
    return float(100 * known.mean()) if known.size else float("nan")


def _quiet(*_: Any) -> None:
    """Drops what the evaluation prints."""
