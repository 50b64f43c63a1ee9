"""What is fuzzed: for each format valid files, a mutation, and the code that reads it."""

from __future__ import annotations

import atexit
import io
import json
import logging
import os
import pickle
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from helpers.coco_example import GOOD
from PIL import Image
from safetensors.torch import save as save_safetensors
from torch import nn

from onenet.checkpoints.weights import load_weights, locate_weights, torchvision_model
from onenet.data.batching import group_by_shape, resized_shape
from onenet.data.dataset import CocoDetection
from onenet.data.sources import DatasetSource, find_dataset
from onenet.errors import OneNetError
from onenet.evaluation.registry import choose_evaluator
from onenet.evaluation.report import score
from onenet.evaluation.truth import has_objects, read_truth
from onenet.lightning.build import build_detector
from onenet.lightning.config import dump, load_cfg

from . import archives, results, texts

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
from _shared.crowdhuman_odgt import read_odgt  # noqa: E402
from check_dataset import check as check_dataset  # noqa: E402

from .label_trees import label_trees, mutate_label_tree, read_label_tree  # noqa: E402


@dataclass(frozen=True)
class Target:
    """One format.

    Attributes:
        name: of the format.
        suffix: that a file must have to be read as such.
        read: takes a file; raises an ``OneNetError`` where it refuses it.
        mutate: one change to the bytes of a file.
        seeds: valid files.
    """

    name: str
    suffix: str
    read: Callable[[Path], None]
    mutate: Callable[[Random, bytes], bytes]
    seeds: Callable[[], list[bytes]]


def chosen(path: Path, part: int) -> bool:
    """Whether a file is among the one in ``part`` that what takes long is done with."""
    return zlib.crc32(path.read_bytes()) % part == 0


# -- annotation files ------------------------------------------------------------------------


@cache
def image_folder() -> Path:
    """Three images and a link out of their folder, kept until the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="onenet-fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "sub").mkdir()
    for name, size in {"one.png": (40, 30), "sub/two.png": (64, 48), "ä.jpg": (10, 20)}.items():
        Image.new("RGB", size).save(folder / name)
    (folder / "out.png").symlink_to("/etc/hostname")
    return folder


@cache
def annotation_files() -> list[bytes]:
    named = json.loads(json.dumps(GOOD))
    for entry, name in zip(named["images"], ("one.png", "sub/two.png", "ä.jpg"), strict=True):
        entry["file_name"] = name
    box = {"image_id": 1, "category_id": 1}
    dense = {
        "images": [{"id": 1, "file_name": "one.png", "width": 40, "height": 30}],
        "categories": [{"id": 1, "name": "a", "supercategory": "b"}],
        "annotations": [
            {**box, "id": i, "bbox": [i, i, 3 * i, 2 * i], "area": 6.0 * i * i, "iscrowd": 0}
            for i in range(1, 8)
        ],
        "info": {"year": 2017},
    }
    return [json.dumps(data).encode() for data in (named, dense)]


def read_annotation_file(path: Path) -> None:
    """All that training does before its first iteration, and tools/check_dataset.py."""
    source = DatasetSource("fuzzed", path, image_folder())
    check_dataset(source, workers=0, num_classes=2)
    data = CocoDetection(source, keep_empty=chosen(path, 2))
    data.check_num_classes(len(data.class_names))
    sizes = [tuple(size) for size in data.sizes.tolist()]
    groups = group_by_shape([resized_shape(*size, 800, 1333) for size in sizes], 4)
    assert sum(map(len, groups)) == len(data)
    for index in range(min(len(data), 8)):
        record = data.record(index)
        os.fsencode(record.file_name)
        assert record.height > 0 and record.width > 0
        assert np.isfinite(record.boxes).all() and len(record.boxes) == len(record.labels)
        assert (record.boxes[:, 2:] >= record.boxes[:, :2]).all()
        assert ((record.labels >= 0) & (record.labels < len(data.class_names))).all()
    if chosen(path, 16):
        first = {"image_id": int(data.image_ids[0]), "category_id": data.category_ids[0]}
        truth = read_truth(path)
        assert has_objects(truth) == any(len(data.record(i).labels) for i in range(len(data)))
        found = [{**first, "bbox": [0.0, 0.0, 9.0, 9.0], "score": 0.5}]
        score(choose_evaluator(_small_cfg()), truth, found)
    data.check_images(skip_missing=True)


@cache
def odgt_files() -> list[bytes]:
    box = {"tag": "person", "fbox": [1, 2, 10, 20.5], "vbox": [1, 2, 5, 5], "extra": {"ignore": 0}}
    boxes = [box, {**box, "tag": "mask"}, {**box, "extra": {"ignore": 1}}]
    lines = [{"ID": "ä", "gtboxes": boxes}, {"ID": "ä/../ä", "gtboxes": []}]
    return ["\n".join(map(json.dumps, lines[:count])).encode() for count in (1, 2)]


def read_odgt_file(path: Path) -> None:
    content = read_odgt(path, image_folder()).content
    path.with_suffix(".json").write_text(json.dumps(content), encoding="utf-8")
    read_annotation_file(path.with_suffix(".json"))


# -- configs ---------------------------------------------------------------------------------

CONFIGS = ROOT / "projects" / "OneNet" / "configs"


@cache
def _small_cfg() -> Any:
    return load_cfg(ROOT / "configs" / "quick_schedules" / "onenet.res18.shapes.yaml")


@cache
def config_files() -> list[bytes]:
    """Shipped configs, their bases behind them."""
    seeds = []
    for name in ("res18.nodcn", "fcos.res50", "retinanet.res50"):
        text = (CONFIGS / f"onenet.{name}.yaml").read_bytes()
        base = (CONFIGS / "Base-OneNet.yaml").read_bytes()
        chain = texts.SEPARATOR.join((text.replace(b"Base-OneNet.yaml", b"base0.yaml"), base))
        seeds.append(chain.replace(b"\n\n", b"\n"))
    other = b"_BASE_: [base0.yaml, base1.yaml]\nSEED: 3\n"
    small = b"MODEL:\n  OneNet: {NUM_CLASSES: 3, NUM_HEADS: 2, DECONV_CHANNEL: [512, 64, 64, 64]}\n"
    small += b"  RESNETS: {DEPTH: 18, RES2_OUT_CHANNELS: 64,\n"
    small += b"    OUT_FEATURES: [res2, res3, res4, res5]}\n  META_ARCHITECTURE: OneNet\n"
    third = b"SOLVER: {BASE_LR: 1e-4, STEPS: [30, 40], MAX_ITER: 50, IMS_PER_BATCH: 4}\n"
    third += b"INPUT:\n  CROP: {ENABLED: True, TYPE: relative_range, SIZE: [0.3, 0.3]}\n"
    third += b'DATASETS: {TRAIN: ["~/no.json:images"]}\n'
    third += b"TEST: {PRECISION: bfloat16}\nMODEL_EMA: {ENABLED: True, DECAY: 0.9}\n"
    return [*seeds, texts.SEPARATOR.join((other, small, third))]


def read_config(path: Path) -> None:
    """Load it; build its detector, without memory for its weights, one time in eight."""
    names = ("self.yaml", "base0.yaml", "base1.yaml")
    files = path.read_bytes().split(texts.SEPARATOR)
    for name, content in zip(names, files, strict=False):
        (path.parent / name).write_bytes(content)
    cfg = load_cfg(path.parent / "self.yaml")
    if chosen(path, 8):
        (path.parent / "whole.yaml").write_text(dump(cfg), encoding="utf-8")
        assert load_cfg(path.parent / "whole.yaml") == cfg
        with torch.device("meta"):
            build_detector(cfg)
    with suppress(OneNetError):
        if not torchvision_model(cfg.MODEL.WEIGHTS):  # which would be fetched
            locate_weights(cfg.MODEL.WEIGHTS)
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        with suppress(OneNetError):  # they are not there
            find_dataset(name)


# -- checkpoints -----------------------------------------------------------------------------


class TinyDetector(nn.Module):
    """Has what :func:`onenet.checkpoints.weights.load_weights` looks at."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
        self.head = nn.ModuleDict({"cls_score": nn.Conv2d(2, 3, 1)})


def _states() -> list[dict[str, Any]]:
    torch.manual_seed(0)
    state = TinyDetector().state_dict()
    half = {"0.weight": torch.zeros(2, 1, 1, 1).bfloat16(), "0.bias": torch.ones(2).half()}
    numbers = torch.arange(20.0)
    views = {**state, "backbone.0.bias": numbers[2:4], "backbone.1.bias": numbers[::2][:2]}
    averaged = {"model": views, "ema": {"model": state, "updates": 4}, "optimizer": {0: {}}}
    parameters = {name: nn.Parameter(v) for name, v in state.items() if v.is_floating_point()}
    return [
        {"model": state, "iteration": 3, "class_names": ["a", "b", "c"], "none": None, "lr": 0.1},
        averaged,
        {f"module.{name}": parameters.get(name, value) for name, value in state.items()},
        half,
        *({**state, "backbone.0.bias": odd} for odd in _odd_tensors(state["backbone.0.bias"])),
    ]


def _odd_tensors(value: torch.Tensor) -> list[torch.Tensor]:
    """Of the same shape, but no ordinary arrays."""
    quantised = torch.quantize_per_tensor(value, 0.1, 0, torch.qint8)
    return [value.to_sparse(), quantised, value.to("meta"), value.to(torch.complex64)]


def _saved(content: Any, **options: bool) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


@cache
def pth_files() -> list[bytes]:
    old = [_saved(state, _use_new_zipfile_serialization=False) for state in _states()[:4]]
    return [*map(_saved, _states()), *old]


@cache
def safetensors_files() -> list[bytes]:
    seeds = []
    for state in _states()[:4]:
        tensors = {name: value.clone() for name, value in state.get("model", state).items()}
        seeds.append(save_safetensors(tensors, {"format": "pt"}))
    return seeds


@cache
def pkl_files() -> list[bytes]:
    arrays = {name: value.float().numpy() for name, value in _states()[0]["model"].items()}
    arrays["backbone.0.bias"] = np.asfortranarray(arrays["backbone.0.bias"].astype(">f4"))
    content = {"model": arrays, "__author__": "x", "matching_heuristics": True}
    content["scalar"] = np.float64(3)
    return [pickle.dumps(content, protocol) for protocol in (0, 1, 2, 4, 5)]


@cache
def _detector() -> TinyDetector:
    return TinyDetector()


def read_weights(path: Path) -> None:
    """Load it, as for training, for fine-tuning or for inference."""
    new_classes, detector = chosen(path, 2), chosen(path, 3)
    content = load_weights(_detector(), str(path), new_classes=new_classes, detector=detector)
    assert all(value.device.type == "cpu" for value in _detector().state_dict().values())
    assert isinstance(content, dict)


_ALL = (
    Target("annotations", ".json", read_annotation_file, texts.mutate_json, annotation_files),
    Target("results", ".json", results.read_results_file, texts.mutate_json, results.results_files),
    Target("odgt", ".odgt", read_odgt_file, texts.mutate_json_lines, odgt_files),
    Target("configs", ".yaml", read_config, texts.mutate_yaml, config_files),
    Target("pth", ".pth", read_weights, archives.mutate_zip, pth_files),
    Target(
        "safetensors", ".safetensors", read_weights, archives.mutate_safetensors, safetensors_files
    ),
    Target("pkl", ".pkl", read_weights, archives.mutate_pickle, pkl_files),
    Target("trees", ".tree", read_label_tree, mutate_label_tree, label_trees),
)
TARGETS = {target.name: target for target in _ALL}


class _Formatter(logging.Handler):
    """Makes every line of the log, and drops it."""

    def emit(self, record: logging.LogRecord) -> None:
        record.getMessage()


def quieten() -> None:
    """Log lines are made, and shown nowhere."""
    logging.getLogger().handlers[:] = [_Formatter()]
    logging.getLogger().setLevel(logging.INFO)
