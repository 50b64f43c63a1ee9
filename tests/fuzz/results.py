"""What is fuzzed of results files: the programs that read them draw or score their detections."""

from __future__ import annotations

import atexit
import json
import math
import shutil
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from helpers.configs import R50
from helpers.project import ROOT
from PIL import Image

from onenet.data.dataset import CocoDetection
from onenet.data.sources import DatasetSource
from onenet.evaluation.registry import Evaluator, choose_evaluator
from onenet.evaluation.report import score
from onenet.evaluation.results import read_results
from onenet.evaluation.truth import read_truth
from onenet.lightning.config import load_cfg

sys.path.insert(0, str(ROOT / "tools"))
from visualize_json_results import detections_by_image, draw  # noqa: E402

IMAGES, CLASS = (1, 2, 40), 7
BOXES = ([2.0, 3, 20, 15], [-5.0, 10, 90, 30.5], [0.0, 0, 1, 1])


@cache
def _data() -> CocoDetection:
    """Three images of 40 × 30 px with an object each, kept until the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="onenet-fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for image in IMAGES:
        Image.new("RGB", (40, 30)).save(folder / f"{image}.png")
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 40, "height": 30} for i in IMAGES],
        "categories": [{"id": CLASS, "name": "person"}],
        "annotations": [
            {"id": i, "image_id": i, "category_id": CLASS, "bbox": box}
            for i, box in zip(IMAGES, BOXES, strict=True)
        ],
    }
    (folder / "truth.json").write_text(json.dumps(content), encoding="utf-8")
    return CocoDetection(DatasetSource("fuzzed", folder / "truth.json", folder))


@cache
def _evaluators() -> list[Evaluator]:
    one = ["MODEL.OneNet.NUM_CLASSES", "1", "TEST.EVALUATOR"]
    return [choose_evaluator(load_cfg(R50, [*one, name])) for name in ("coco", "crowdhuman")]


@cache
def results_files() -> list[bytes]:
    """Detections of the objects, some of them twice, and of nothing."""
    some = {"category_id": CLASS, "score": 0.5}
    entries: list[dict[str, Any]] = [
        {**some, "image_id": image, "bbox": box, "score": 0.1 * n}
        for n, (image, box) in enumerate(zip(IMAGES * 2, BOXES * 2, strict=True))
    ]
    lists = [entries, [{**some, "image_id": 1, "bbox": [30, 20, 9, 9]}], []]
    return [json.dumps(entries).encode() for entries in lists]


def read_results_file(path: Path) -> None:
    """All that visualize_json_results.py, compare.py and ablate.py do with it."""
    data = _data()
    found = detections_by_image(path, data)
    for index, image in enumerate(data.image_ids.tolist()):
        draw(data, index, found.get(image), 0.0)
    file = data.source.json_file
    results = read_results(path, file, data.image_ids.tolist(), data.category_ids)
    for evaluator in _evaluators():
        metrics = score(evaluator, read_truth(file), results)
        assert not metrics.pop("duplicates") < 1  # or NaN
        for name, value in metrics.items():
            assert name == "APl" or math.isfinite(value)  # no object is large
            assert not value < -1e-9 and not value > 100 + 1e-9
