"""Finding data sets by name, and reading a good COCO file."""

from __future__ import annotations

import copy
import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
from helpers.coco_example import GOOD, write

from onenet.data.dataset import CocoDetection
from onenet.data.sources import DatasetSource, find_dataset
from onenet.errors import DatasetError


def make_files(root: Path, json_file: str, image_root: str) -> None:
    (root / image_root).mkdir(parents=True)
    (root / json_file).parent.mkdir(parents=True, exist_ok=True)
    (root / json_file).write_text("{}")


# -- names -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, json_file, image_root",
    [
        ("coco_2017_train", "coco/annotations/instances_train2017.json", "coco/train2017"),
        ("coco_2017_val", "coco/annotations/instances_val2017.json", "coco/val2017"),
        ("coco_2017_test-dev", "coco/annotations/image_info_test-dev2017.json", "coco/test2017"),
        ("CrowdHuman_train", "crowdhuman/annotations/train.json", "crowdhuman/CrowdHuman_train"),
        ("CrowdHuman_val", "crowdhuman/annotations/val.json", "crowdhuman/CrowdHuman_val"),
    ],
)
def test_known_name_is_found_under_the_variable(tmp_path, monkeypatch, name, json_file, image_root):
    make_files(tmp_path, json_file, image_root)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert find_dataset(name) == DatasetSource(name, tmp_path / json_file, tmp_path / image_root)


def test_known_name_is_found_in_datasets_folder_without_the_variable(tmp_path, monkeypatch):
    make_files(tmp_path / "datasets", "coco/annotations/instances_val2017.json", "coco/val2017")
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    monkeypatch.chdir(tmp_path)
    assert find_dataset("coco_2017_val").image_root == Path("datasets/coco/val2017")


def test_missing_known_data_names_the_file_and_the_variable(tmp_path, monkeypatch):
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatasetError) as error:
        find_dataset("coco_2017_val")
    text = str(error.value)
    assert "'coco_2017_val'" in text and "DETECTRON2_DATASETS is not set" in text
    assert str(tmp_path / "datasets/coco/annotations/instances_val2017.json") in text


@pytest.mark.parametrize("folder", ["images", "set:1/images", "C:/images"])
def test_own_data_is_split_at_the_json(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    make_files(tmp_path, "a.b/boxes.JSON", folder)
    source = find_dataset(f"a.b/boxes.JSON:{folder}")
    assert (source.json_file, source.image_root) == (Path("a.b/boxes.JSON"), Path(folder))


def test_own_data_with_two_json_parts_is_split_at_the_last(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_files(tmp_path, "x.json:y/boxes.json", "images")
    assert find_dataset("x.json:y/boxes.json:images").json_file == Path("x.json:y/boxes.json")


def test_own_data_expands_the_home_folder(tmp_path, monkeypatch):
    make_files(tmp_path, "boxes.json", "images")
    monkeypatch.setenv("HOME", str(tmp_path))
    source = find_dataset("~/boxes.json:~/images")
    assert source.json_file == tmp_path / "boxes.json"
    assert source.image_root == tmp_path / "images"


@pytest.mark.parametrize("missing", ["json", "folder"])
def test_missing_own_data_names_what_is_missing(tmp_path, missing):
    make_files(tmp_path, "boxes.json", "images")
    parts = [str(tmp_path / "boxes.json"), str(tmp_path / "images")]
    parts[missing == "folder"] = wrong = str(tmp_path / "gone.json")
    with pytest.raises(DatasetError, match="annotation file|image folder") as error:
        find_dataset(":".join(parts))
    assert repr(wrong) in str(error.value)


@pytest.mark.parametrize(
    "name, hint",
    [
        ("coco_2017_tain", "did you mean 'coco_2017_train'?"),
        ("whatever", "Known names are coco_2017_train"),
        ("boxes.json", "boxes.json:IMAGE_FOLDER"),
        ("boxes.json:", "boxes.json:IMAGE_FOLDER"),
        ("", "Known names are"),
    ],
)
def test_unknown_name_gets_a_hint(name, hint):
    with pytest.raises(DatasetError) as error:
        find_dataset(name)
    assert hint in str(error.value) and repr(name) in str(error.value)


# -- reading ---------------------------------------------------------------------------------


def test_labels_follow_category_ids_and_images_follow_image_ids(tmp_path):
    data = CocoDetection(write(tmp_path, GOOD))
    assert data.class_names == ["person", "toothbrush"]
    assert data.category_ids == [1, 90]
    assert data.image_ids.tolist() == [3, 7, 9]
    assert data.sizes.tolist() == [[48, 64], [20, 10], [30, 40]]


def test_record_holds_boxes_as_annotated(tmp_path):
    record = CocoDetection(write(tmp_path, GOOD)).record(0)
    assert record.image_id == 3 and (record.height, record.width) == (48, 64)
    assert record.file_name == str(tmp_path / "images" / "drei-\u00e4.jpg")
    assert record.boxes.dtype == np.float32 and record.labels.dtype == np.int64
    assert record.boxes.tolist() == [[1.5, 2, 11.5, 22.25], [-5, 40, 95, 60]]
    assert record.labels.tolist() == [1, 0]


def test_images_without_objects_and_crowds(tmp_path):
    data = CocoDetection(write(tmp_path, GOOD))
    for index in (1, 2):
        assert data.record(index).boxes.shape == (0, 4)
        assert data.record(index).labels.shape == (0,)
    assert data.record(2).file_name == str(tmp_path / "images" / "sub" / "nine.png")


def test_dropping_images_without_objects(tmp_path):
    data = CocoDetection(write(tmp_path, GOOD), keep_empty=False)
    assert data.image_ids.tolist() == [3] and len(data) == 1
    assert len(data.record(0).labels) == 2


@pytest.mark.parametrize("index", [3, -1])
def test_record_outside_is_an_index_error(tmp_path, index):
    with pytest.raises(IndexError):
        CocoDetection(write(tmp_path, GOOD)).record(index)


def test_changing_a_record_changes_nothing_else(tmp_path):
    data = CocoDetection(write(tmp_path, GOOD))
    data.record(0).boxes[:] = 0
    assert data.record(0).boxes[0, 2] == 11.5


def test_reading_prints_nothing(tmp_path, capsys):
    CocoDetection(write(tmp_path, GOOD))
    assert capsys.readouterr() == ("", "")


def test_broken_boxes_are_left_out_and_counted_once(tmp_path, caplog):
    data = copy.deepcopy(GOOD)
    bad = [[0, 0, 0, 5], [0, 0, 5, -1], [float("nan"), 0, 5, 5], [0, 0, float("inf"), 5]]
    bad.append([1e39, 0, 5, 5])  # finite, but not in float32
    for number, bbox in enumerate(bad):
        data["annotations"].append(
            {"id": 100 + number, "image_id": 7, "category_id": 1, "bbox": bbox}
        )
    with caplog.at_level(logging.WARNING):
        read = CocoDetection(write(tmp_path, data), keep_empty=False)
    assert read.image_ids.tolist() == [3]
    assert len(caplog.records) == 1
    assert "left out: boxes without a finite, positive size (5)" in caplog.text
    assert "data.json" in caplog.text and "annotation 100 of 'seven.jpg'" in caplog.text


def test_no_object_left_is_an_error_without_empty_images_only(tmp_path):
    data = {**GOOD, "annotations": GOOD["annotations"][1:2]}
    assert len(CocoDetection(write(tmp_path, data))) == 3
    with pytest.raises(DatasetError, match="no image with an object"):
        CocoDetection(write(tmp_path, data), keep_empty=False)


def test_no_images_is_an_error(tmp_path):
    with pytest.raises(DatasetError, match="no images"):
        CocoDetection(write(tmp_path, {**GOOD, "images": [], "annotations": []}))


# -- classes and errors ----------------------------------------------------------------------


def named(tmp_path: Path, names: list[str]) -> CocoDetection:
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(names)]
    data = {"images": GOOD["images"], "annotations": [], "categories": categories}
    return CocoDetection(write(tmp_path, data))


def test_only_an_equal_number_of_classes_passes(tmp_path):
    data = named(tmp_path, ["a", "b"])
    data.check_num_classes(2)
    for number in (1, 3):
        with pytest.raises(DatasetError, match="data.json has 2 classes"):
            data.check_num_classes(number)


def test_class_count_error_gives_the_override(tmp_path):
    with pytest.raises(DatasetError) as error:
        named(tmp_path, ["RBC", "WBC", "Platelets"]).check_num_classes(80)
    assert str(error.value) == (
        "data.json has 3 classes (RBC, WBC, Platelets), but MODEL.OneNet.NUM_CLASSES is 80. "
        "Add to the command: MODEL.OneNet.NUM_CLASSES 3"
    )


def test_class_count_error_shortens_long_lists(tmp_path):
    with pytest.raises(DatasetError, match=r"26 classes \(a, b, c, d, e, f, … z\), but"):
        named(tmp_path, list("abcdefghijklmnopqrstuvwxyz")).check_num_classes(80)


def test_one_class_is_singular(tmp_path):
    with pytest.raises(DatasetError, match=r"has 1 class \(person\)"):
        named(tmp_path, ["person"]).check_num_classes(80)


def test_error_survives_pickling():
    assert str(pickle.loads(pickle.dumps(DatasetError("a: b")))) == "a: b"
