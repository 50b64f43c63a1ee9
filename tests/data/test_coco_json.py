"""Every problem in a COCO file is an error that names the entry."""

from __future__ import annotations

import copy

import pytest
from helpers.coco_example import GOOD, write

from onenet.data.coco_json import find_problems, parse_coco_json, read_coco_json
from onenet.data.dataset import CocoDetection
from onenet.data.sources import DatasetSource
from onenet.errors import DatasetError


@pytest.mark.parametrize(
    "content, says",
    [
        ("", "not valid JSON"),
        ("{'images': []}", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "got a JSON list"),
        ("{}", "'images' is missing; .* got nothing"),
        ('{"images": [], "categories": []}', "'annotations' is missing; .* got images, categories"),
        ('{"images": {}, "annotations": [], "categories": []}', "'images' is not a list"),
        ('{"images": [], "annotations": [], "categories": []}', "'categories' is empty"),
    ],
)
def test_files_that_are_not_coco_data(tmp_path, content, says):
    source = write(tmp_path, content)
    with pytest.raises(DatasetError, match=says) as error:
        CocoDetection(source)
    assert str(source.json_file) in str(error.value)


def test_missing_file(tmp_path):
    with pytest.raises(DatasetError, match=r"gone\.json cannot be read: No such file"):
        CocoDetection(DatasetSource("mine", tmp_path / "gone.json", tmp_path))


@pytest.mark.parametrize(
    "part, index, change, says",
    [
        (
            "annotations",
            2,
            {"category_id": 2},
            r"\[2\] \(id 3\): 'category_id' is 2, but no entry of 'categories' has this id",
        ),
        ("annotations", 0, {"category_id": None}, r"\[0\] \(id 1\): 'category_id' is None, but"),
        ("annotations", 0, {"image_id": 4}, r"'image_id' is 4, but no entry of 'images' has this"),
        ("annotations", 0, {"image_id": "3"}, r"'image_id' is '3', but"),
        ("annotations", 0, {"bbox": None}, r"'bbox' must be \[x, y, width, height\]"),
        ("annotations", 0, {"bbox": [1, 2, 3]}, r"'bbox' must be .* got \[1, 2, 3\]"),
        ("annotations", 0, {"bbox": [1, 2, 3, "4"]}, "'bbox' must be"),
        ("annotations", 0, {"bbox": [1, 2, 3, 10**400]}, "'bbox' must be"),
        ("annotations", 1, {"id": 1}, r"annotations\[1\] \(id 1\): this id has been used"),
        ("annotations", 1, {"id": None}, "'id' must be an integer, got None"),
        ("annotations", 1, {"ignore": 1}, "'ignore' is not supported.*iscrowd"),
        ("annotations", 1, {"iscrowd": 2}, "'iscrowd' must be 0 or 1, got 2"),
        ("annotations", 1, {"iscrowd": "0"}, "'iscrowd' must be 0 or 1, got '0'"),
        ("annotations", 1, {"iscrowd": None}, "'iscrowd' must be 0 or 1, got None"),
        ("annotations", 1, {"area": None}, "'area' must be a number of px², .* got None"),
        ("annotations", 1, {"area": float("nan")}, "'area' must be a number"),
        ("annotations", 1, {"area": -1}, "'area' must be a number of px², 0 or more, .* got -1"),
        ("images", 1, {"id": 9}, r"images\[1\] \(id 9\): this id has been used"),
        ("images", 1, {"id": "3"}, r"images\[1\] \(id '3'\): 'id' must be an integer, got '3'"),
        ("images", 1, {"id": 10**30}, "'id' must be an integer"),
        ("images", 1, {"width": None}, r"images\[1\] \(id 3\): 'width' must be"),
        ("images", 1, {"height": 0}, "'height' must be a whole number of pixels, got 0"),
        ("images", 1, {"height": 1.5}, "'height' must be"),
        ("images", 1, {"height": float("nan")}, "'height' must be"),
        ("images", 1, {"width": 1e300}, "'width' must be"),
        ("images", 1, {"width": float("inf")}, "'width' must be"),
        ("images", 1, {"width": True}, "'width' must be"),
        ("images", 1, {"file_name": ""}, "'file_name' must be a path"),
        ("images", 1, {"file_name": 7}, "'file_name' must be a path, got 7"),
        ("categories", 0, {"id": 1}, r"categories\[1\] \(id 1\): this id"),
        ("categories", 0, {"name": None}, r"categories\[0\] \(id 90\): 'name' must be a string"),
        ("categories", 0, {"name": ""}, r"\(id 90\): 'name' must be a string .* not empty, got ''"),
        ("categories", 0, {"name": " \t"}, "'name' must be a string"),
        ("categories", 0, {"name": ["a"]}, "'name' must be a string"),
    ],
)
def test_bad_entries_are_named(tmp_path, part, index, change, says):
    data = copy.deepcopy(GOOD)
    data[part][index].update(change)
    source = write(tmp_path, data)
    with pytest.raises(DatasetError, match=says) as error:
        CocoDetection(source)
    assert str(source.json_file) in str(error.value) and part in str(error.value)


@pytest.mark.parametrize(
    "part, key",
    [
        ("annotations", "bbox"),
        ("annotations", "id"),
        ("annotations", "image_id"),
        ("annotations", "category_id"),
        ("images", "id"),
        ("images", "width"),
        ("images", "height"),
        ("images", "file_name"),
        ("categories", "id"),
        ("categories", "name"),
    ],
)
def test_missing_keys_are_named(tmp_path, part, key):
    data = copy.deepcopy(GOOD)
    del data[part][0][key]
    with pytest.raises(DatasetError, match=rf"{part}\[0\].*{key}"):
        CocoDetection(write(tmp_path, data))


def test_entry_that_is_no_object(tmp_path):
    with pytest.raises(DatasetError, match=r"images\[0\]: must be a JSON object, got 'a\.jpg'"):
        CocoDetection(write(tmp_path, {**GOOD, "images": ["a.jpg"]}))


def test_all_problems_are_found(tmp_path):
    data = copy.deepcopy(GOOD)
    data["categories"].append({"id": 5})
    data["images"] += [{"id": 20, "file_name": "x.png", "width": 0, "height": 1}, "y.png"]
    data["annotations"] += [
        {"id": 1, "image_id": 3, "category_id": 1, "bbox": [0, 0, 1, 1]},
        {"id": 10, "image_id": 20, "category_id": 5, "bbox": [0, 0, 1, 1]},  # of a bad image
        {"id": 11, "image_id": 21, "category_id": 1, "bbox": [0, 0, 1, 1]},
    ]
    source = write(tmp_path, data)
    found = list(find_problems(parse_coco_json(source.json_file)))
    assert [(p.part, p.index, p.kind) for p in found] == [
        ("categories", 2, "categories: 'name' is not a line of text"),
        ("images", 3, "images: 'width' is not a number of pixels"),
        ("images", 4, "images: not a JSON object"),
        ("annotations", 3, "annotations: id used twice"),
        ("annotations", 5, "annotations: unknown image_id"),
    ]
    with pytest.raises(DatasetError, match=r"categories\[2\] \(id 5\): 'name'"):
        read_coco_json(source.json_file)
    assert list(find_problems(copy.deepcopy(GOOD))) == []


@pytest.mark.parametrize("crowd", [0, 1, 0.0, 1.0, True, False])
def test_crowds_may_be_marked_in_any_way(tmp_path, crowd):
    data = copy.deepcopy(GOOD)
    data["annotations"][0]["iscrowd"] = crowd
    assert len(CocoDetection(write(tmp_path, data)).record(0).labels) == 2 - bool(crowd)


def test_white_space_around_class_names_is_no_part_of_them(tmp_path):
    data = copy.deepcopy(GOOD)
    data["categories"][0]["name"] = "  tooth brush\t\n"
    source = write(tmp_path, data)
    (tmp_path / "images").mkdir()
    assert read_coco_json(source.json_file)["categories"][0]["name"] == "tooth brush"
    assert CocoDetection(source).class_names == ["person", "tooth brush"]
