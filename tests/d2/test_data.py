"""Configs and data sets of the Detectron2 engine."""

from __future__ import annotations

import pytest

pytest.importorskip("detectron2")

import json
from pathlib import Path

import torch
from detectron2.data import (
    DatasetCatalog,
    MetadataCatalog,
    get_detection_dataset_dicts,
)
from detectron2.data.samplers import RepeatFactorTrainingSampler
from helpers.coco_example import GOOD
from helpers.configs import ROOT, SHIPPED, flat, write
from helpers.detectron2_runs import name_of, train_d2
from helpers.runs import edit_json, write_config

from onenet.config.rules import BASELINES
from onenet.d2 import datasets as d2_datasets
from onenet.d2 import register_datasets
from onenet.d2.config import load_cfg
from onenet.data.dataset import CocoDetection
from onenet.data.sources import check_same_classes, find_dataset
from onenet.errors import ConfigError, DatasetError
from onenet.lightning.config import load_cfg as load_embedded
from onenet.lightning.sampler import repeat_factors

R18 = ROOT / "projects" / "OneNet" / "configs" / "onenet.res18.nodcn.yaml"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_files_have_the_same_values_in_both_engines(path):
    ours = dict(flat(load_embedded(path)))
    if ours["MODEL.META_ARCHITECTURE"].startswith(BASELINES):
        with pytest.raises(ConfigError, match="--engine lightning"):
            load_cfg(path)
        return
    theirs = dict(flat(load_cfg(path)))
    different = [k for k in ours if k in theirs and theirs[k] != ours[k]]
    # The one falls back to the CPU in the config, the other when it places the model.
    assert [key for key in different if key != "MODEL.DEVICE"] == []
    alone = ("MODEL.TORCHVISION.", "MODEL.TRANSFORMERS.")
    assert all(key.startswith(alone) for key in set(ours) - set(theirs))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("SOLVER: {MAX_ITR: 5}", "SOLVER.MAX_ITR"),
        ("SOLVER: {MAX_ITER: soon}", "SOLVER.MAX_ITER"),
        ("MODEL: 5", "MODEL"),
        ("MODEL: {DEVICE: {a: 1}}", "MODEL.DEVICE"),
        ("MODEL: {OneNet: {PRE_DEFINE: True}}", "LOCATION_COST"),
        ("SEED: !!python/object/apply:os.getcwd []", "would execute code"),
        ("SOLVER: {1: 2}", "1"),
        ("VERSION: 1", "VERSION is 1; expected 2"),
        ("_BASE_: gone.yaml", "gone.yaml, named by _BASE_"),
    ],
)
def test_a_wrong_file_is_named_with_the_key(tmp_path, text, told):
    path = write(tmp_path, text + "\n")
    with pytest.raises(ConfigError, match=told) as error:
        load_cfg(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "opts",
    [["NO.SUCH", "1"], ["SEED"], ["SEED", "x"], ["MODEL", "x"], ["MODEL.DEVICE.x", "1"], ["", ""]],
)
def test_wrong_overrides_are_told(opts):
    with pytest.raises(ConfigError, match="^command line: "):
        load_cfg(R18, opts)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(ConfigError, match="none.yaml does not exist"):
        load_cfg(tmp_path / "none.yaml")


def test_one_line_says_that_the_cpu_is_used(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with caplog.at_level("INFO", logger="onenet"):
        assert load_cfg(R18).MODEL.DEVICE == "cpu"
        assert load_cfg(R18, ["MODEL.DEVICE", "cpu"]).MODEL.DEVICE == "cpu"
    assert [r.getMessage() for r in caplog.records] == [
        "MODEL.DEVICE is cuda, but there is no CUDA: running on the CPU"
    ]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert load_cfg(R18, ["MODEL.DEVICE", "cuda:1"]).MODEL.DEVICE == "cuda:1"


def test_a_data_set_is_registered_once(shapes):
    name = name_of(shapes)
    register_datasets([name, name])
    register_datasets([name])
    records = DatasetCatalog.get(name)
    ours = CocoDetection(find_dataset(name))
    assert [r["image_id"] for r in records] == ours.image_ids.tolist()
    assert all(Path(r["file_name"]).is_file() for r in records)
    assert MetadataCatalog.get(name).evaluator_type == "coco"
    assert d2_datasets.class_names(name) == ours.class_names


def test_categories_are_ordered_by_id(tmp_path):
    (tmp_path / "images").mkdir()
    write(tmp_path, json.dumps(GOOD), "data.json")
    name = f"{tmp_path}/data.json:{tmp_path}/images"
    register_datasets([name])
    assert d2_datasets.class_names(name) == ["person", "toothbrush"]
    labels = [a["category_id"] for r in DatasetCatalog.get(name) for a in r["annotations"]]
    assert labels == [1, 0, 0]


@pytest.mark.parametrize("name", ["nowhere", "a.json", "no.json:no"])
def test_an_unknown_data_set_is_told_as_by_the_embedded_engine(name):
    with pytest.raises(DatasetError) as expected:
        find_dataset(name)
    with pytest.raises(DatasetError) as error:
        register_datasets([name])
    assert str(error.value) == str(expected.value)
    assert name not in DatasetCatalog.list()


def test_coco_that_is_not_there_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert "coco_2017_val" in DatasetCatalog.list()
    with pytest.raises(DatasetError, match="instances_val2017.json"):
        register_datasets(["coco_2017_val"])


def test_another_number_of_classes_is_told_as_by_the_embedded_engine(shapes):
    name = name_of(shapes)
    register_datasets([name])
    d2_datasets.check_classes([name], 6)
    with pytest.raises(DatasetError) as expected:
        CocoDetection(find_dataset(name)).check_num_classes(80)
    with pytest.raises(DatasetError) as error:
        d2_datasets.check_classes([name], 80)
    assert str(error.value) == str(expected.value)


def test_a_broken_json_names_the_entry(shapes, tmp_path):
    def cut(content):
        content["annotations"][2]["bbox"] = [1, 2, 3]

    name = name_of(edit_json(shapes, tmp_path / "broken", "val", cut))
    register_datasets([name])
    with pytest.raises(DatasetError, match=r"annotations\[2\].*'bbox' must be"):
        d2_datasets.check_classes([name], 6)


def test_data_sets_that_are_trained_on_together_agree(shapes, tmp_path):
    def rename(content):
        content["categories"][0]["name"] = "other"

    other = name_of(edit_json(shapes, tmp_path / "renamed", "val", rename))
    register_datasets([name_of(shapes), other])
    sets = [(name, d2_datasets.class_names(name)) for name in (name_of(shapes), other)]
    check_same_classes([sets[0]] * 2)
    with pytest.raises(DatasetError, match="same classes"):
        check_same_classes(sets)


def test_a_data_set_of_the_users_own(shapes):
    """Registered with Detectron2, without a JSON."""
    DatasetCatalog.register("own_dicts", lambda: [])
    MetadataCatalog.get("own_dicts").thing_classes = ["a", "b"]
    DatasetCatalog.register("own_nameless", lambda: [])
    try:
        register_datasets(["own_dicts", "own_nameless"])
        d2_datasets.check_classes(["own_dicts", "own_nameless"], 2)
        with pytest.raises(DatasetError, match="own_dicts has 2 classes"):
            d2_datasets.check_classes(["own_dicts"], 3)
    finally:
        for name in ("own_dicts", "own_nameless"):
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


@pytest.mark.parametrize("root", [True, False])
@pytest.mark.parametrize("keep_empty", [True, False])
def test_repeat_factors_are_detectron2s(shapes, tmp_path, root, keep_empty):
    def crowd(content):
        for i, annotation in enumerate(content["annotations"]):
            annotation["iscrowd"] = int(i % 3 == 0)

    name = f"{edit_json(shapes, tmp_path / 'a', 'train', crowd)}/annotations/instances_train.json"
    name += f":{shapes}/train"
    register_datasets([name])
    records = get_detection_dataset_dicts([name], filter_empty=not keep_empty)
    theirs = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(records, 0.8, root)
    data = CocoDetection(find_dataset(name), keep_empty=keep_empty)
    assert data.image_ids.tolist() == [record["image_id"] for record in records]
    ours = repeat_factors(len(data), *data.shown, threshold=0.8, root=root)
    assert ours.tolist() == theirs.tolist() and ours.max() > 1


def test_steps_that_training_does_not_reach_are_told(shapes, tmp_path, capsys):
    train_d2(write_config(tmp_path, shapes, SOLVER__MAX_ITER=1, DATASETS__TEST=[]))
    assert "never lowers the learning rate (5)" in capsys.readouterr().out
