"""COCO AP of made-up detections: pycocotools against OneNet's evaluation."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _shared.timing import Comparison, Stopwatch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from benchmarks.options import Options
from onenet.evaluation.coco import METRICS, average_precision
from onenet.evaluation.truth import read_truth

PYCOCOTOOLS, OURS = "pycocotools", "faster-coco-eval"
CLASSES, OBJECTS, DETECTIONS = 80, 7, 100
WIDTH, HEIGHT = 640, 480


def make_truth(images: int, rng: np.random.Generator) -> dict[str, Any]:
    """Ground truth in COCO's format: about 7 objects per image, one in a hundred a crowd."""
    counts = rng.poisson(OBJECTS, images)
    total = int(counts.sum())
    # Sizes evenly on a logarithmic scale, so that all three of COCO's area ranges have objects.
    sizes = np.exp(rng.uniform(np.log(8), np.log(400), (total, 2)))
    corners = rng.uniform(0, 1, (total, 2)) * np.maximum((WIDTH, HEIGHT) - sizes, 1)
    boxes = np.concatenate((corners, sizes), axis=1).round(2)
    rows = zip(
        np.repeat(np.arange(images), counts).tolist(),
        rng.integers(CLASSES, size=total).tolist(),
        boxes.tolist(),
        (rng.random(total) < 0.01).astype(int).tolist(),
        strict=True,
    )
    return {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "width": WIDTH, "height": HEIGHT}
            for i in range(images)
        ],
        "categories": [{"id": k + 1, "name": f"class {k}"} for k in range(CLASSES)],
        "annotations": [
            {
                "id": number,
                "image_id": image,
                "category_id": label + 1,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": crowd,
            }
            for number, (image, label, box, crowd) in enumerate(rows, start=1)
        ],
    }


def make_results(truth: dict[str, Any], rng: np.random.Generator) -> list[dict[str, Any]]:
    """100 detections per image: one or two of high score near most objects, the rest random."""
    objects: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in truth["images"]}
    for annotation in truth["annotations"]:
        objects[annotation["image_id"]].append(annotation)
    results = []
    for image, of_image in objects.items():
        near = [a for a in of_image for _ in range(rng.choice(3, p=(0.2, 0.6, 0.2)))]
        near = near[:DETECTIONS]
        boxes = rng.uniform(1, 200, (DETECTIONS, 4))
        labels = rng.integers(1, CLASSES + 1, DETECTIONS)
        scores = rng.beta(1, 8, DETECTIONS)
        if near:
            exact = np.array([a["bbox"] for a in near])
            shifts = rng.normal(0, 0.08, exact.shape) * np.tile(exact[:, 2:], 2)
            boxes[: len(near)] = np.maximum(exact + shifts, 1)
            labels[: len(near)] = [a["category_id"] for a in near]
            scores[: len(near)] = rng.beta(4, 3, len(near))
        rows = zip(boxes.tolist(), labels.tolist(), scores.tolist(), strict=True)
        results += [
            {"image_id": image, "category_id": label, "bbox": box, "score": score}
            for box, label, score in rows
        ]
    return results


def with_pycocotools(
    truth: Path, results: list[dict[str, Any]], watch: Stopwatch
) -> dict[str, float]:
    """COCO's six metrics in per cent, by pycocotools."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(truth))
        found = coco.loadRes([dict(result) for result in results])
        watch("load")
        evaluation = COCOeval(coco, found, "bbox")
        evaluation.evaluate()
        watch("evaluate")
        evaluation.accumulate()
        watch("accumulate")
        evaluation.summarize()
    return dict(zip(METRICS, (100 * evaluation.stats[:6]).tolist(), strict=True))


def with_ours(truth: Path, results: list[dict[str, Any]]) -> dict[str, float]:
    """COCO's six metrics in per cent, as both engines compute them."""
    metrics = average_precision(read_truth(truth), results)
    return {name: metrics[name] for name in METRICS}


def run(options: Options) -> list[Comparison]:
    """Time the evaluation of 5,000 images with 100 detections each, the size of COCO's val2017."""
    images = 20 if options.quick else 5000
    rng = np.random.default_rng(0)
    content = make_truth(images, rng)
    results = make_results(content, rng)
    figures: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        truth = Path(folder) / "truth.json"
        truth.write_text(json.dumps(content), encoding="utf-8")

        def theirs(watch: Stopwatch) -> None:
            figures[PYCOCOTOOLS] = with_pycocotools(truth, results, watch)

        def ours(watch: Stopwatch) -> None:
            figures[OURS] = with_ours(truth, results)

        timings = options.time(
            {PYCOCOTOOLS: theirs, OURS: ours}, device=torch.device("cpu"), most_repeats=3
        )
    difference = max(abs(figures[OURS][name] - figures[PYCOCOTOOLS][name]) for name in METRICS)
    if difference > 1e-4:
        raise RuntimeError(f"the evaluations do not agree: {figures}")
    return [
        Comparison(
            title=f"evaluation: {images} images with {DETECTIONS} detections each, {CLASSES} "
            "classes, from the annotation file to the figures",
            timings=timings,
            baseline=PYCOCOTOOLS,
            facts={name: {"AP": f"{figures[name]['AP']:.4f}"} for name in timings},
            notes=[f"largest difference of the six metrics, in per cent: {difference:.1e}"],
        )
    ]
