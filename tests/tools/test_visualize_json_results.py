"""visualize_json_results.py: a contact sheet, a folder, and files that cannot be drawn."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from helpers.project import load_script


@pytest.fixture(scope="module")
def script():
    return load_script("tools/visualize_json_results.py")


@pytest.fixture
def data(tmp_path):
    """Three images of 64 × 48 px, the first with a box of category 7, the last not detected in."""
    (tmp_path / "images" / "sub").mkdir(parents=True)
    names = ["a.png", "sub/b.png", "c.png"]
    for name in names:
        cv2.imwrite(str(tmp_path / "images" / name), np.full((48, 64, 3), 90, np.uint8))
    images = [
        {"id": i + 1, "file_name": name, "width": 64, "height": 48} for i, name in enumerate(names)
    ]
    box = {"id": 1, "image_id": 1, "category_id": 7, "bbox": [8, 8, 20, 20], "area": 400}
    truth = {
        "images": images,
        "annotations": [{**box, "iscrowd": 0}],
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    results = [
        {"image_id": 1, "category_id": 7, "bbox": [9, 9, 20, 20], "score": 0.9},
        {"image_id": 1, "category_id": 3, "bbox": [30, 5, 9, 9], "score": 0.95},
        {"image_id": 2, "category_id": 3, "bbox": [1, 2, 30, 30], "score": 0.1},
    ]
    (tmp_path / "results.json").write_text(json.dumps(results))
    return tmp_path


def arguments(data, output, results="results.json"):
    dataset = f"{data}/truth.json:{data}/images"
    return ["--input", str(data / results), "--dataset", dataset, "--output", str(data / output)]


def test_results_become_detections_sorted_by_score_with_contiguous_labels(script, data):
    dataset = script.CocoDetection(script.find_dataset(f"{data}/truth.json:{data}/images"))
    found = script.detections_by_image(data / "results.json", dataset)
    assert found[1].labels.tolist() == [0, 1]
    assert found[1].boxes.tolist() == [[30, 5, 39, 14], [9, 9, 29, 29]]
    assert set(found) == {1, 2}


def test_contact_sheet(script, data):
    script.main([*arguments(data, "new/sheet.png"), "--count", "2", "--columns", "1"])
    sheet = cv2.imread(str(data / "new" / "sheet.png"))
    assert sheet.shape[0] > sheet.shape[1] / 2  # two comparisons on top of each other


def test_folder_gets_a_picture_of_every_image_where_it_was(script, data):
    script.main(arguments(data, "pictures"))
    pictures = {str(p.relative_to(data / "pictures")) for p in (data / "pictures").rglob("*.jpg")}
    assert pictures == {"a.jpg", "sub/b.jpg", "c.jpg"}


def test_a_data_set_without_annotations_is_drawn(script, data):
    truth = json.loads((data / "truth.json").read_text())
    del truth["annotations"]
    (data / "truth.json").write_text(json.dumps(truth))
    script.main(arguments(data, "sheet.png"))
    assert (data / "sheet.png").is_file()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"bbox": None}, "[1]: 'bbox' must be [x, y, width, height] in px"),
        ({"image_id": "1"}, "[1]: 'image_id' is '1' (str)"),
    ],
)
def test_an_entry_that_is_wrong_is_named(script, data, capsys, change, reason):
    results = json.loads((data / "results.json").read_text())
    results[1] |= change
    (data / "other.json").write_text(json.dumps(results))
    with pytest.raises(SystemExit) as stop:
        script.main(arguments(data, "sheet.png", "other.json"))
    message = capsys.readouterr().err
    assert stop.value.code == 2 and reason in message and "other.json" in message
    assert not (data / "sheet.png").exists()


def test_missing_file(script, data, capsys):
    with pytest.raises(SystemExit):
        script.main(arguments(data, "sheet.png", "none.json"))
    assert "none.json cannot be read: No such file" in capsys.readouterr().err
