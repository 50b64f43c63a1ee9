"""Results files: what is checked in them, and where they are."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from onenet.errors import DatasetError
from onenet.evaluation.results import finite, read_results, results_folder, set_prefix

GOOD = {"image_id": 4, "category_id": 7, "bbox": [1, 2.5, 3, 0], "score": 0.5}
TRUTH = Path("truth.json")


def read(file: Path, entries: object) -> list[dict]:
    file.write_text(entries if isinstance(entries, str) else json.dumps(entries), encoding="utf-8")
    return read_results(file, TRUTH, [4, 9], [7])


def test_good_entries_are_given_as_they_are(tmp_path):
    entries = [GOOD, {**GOOD, "image_id": 9, "bbox": [-1e5, 0, 9, 9], "score": -3, "more": None}]
    assert read(tmp_path / "r.json", entries) == entries
    assert read(tmp_path / "r.json", "\ufeff[]") == []


BBOX = r"\[1\]: 'bbox' must be \[x, y, width, height\] in px, four finite numbers, .* got "
WRONG = {
    "bbox-of-three": ({"bbox": [1, 2, 3]}, BBOX + r"\[1, 2, 3\] \(list\)"),
    "bbox-of-text": ({"bbox": [1, 2, "3", 4]}, BBOX),
    "bbox-is-text": ({"bbox": "1234"}, BBOX + r"'1234' \(str\)"),
    "bbox-with-null": ({"bbox": [1, 2, None, 4]}, BBOX),
    "bbox-is-null": ({"bbox": None}, BBOX + r"None \(NoneType\)"),
    "bbox-with-nan": ({"bbox": [math.nan, 2, 3, 4]}, BBOX + r"\[nan, 2, 3, 4\]"),
    "bbox-with-infinity": ({"bbox": [1, 2, math.inf, 4]}, BBOX),
    "bbox-with-a-boolean": ({"bbox": [1, True, 3, 4]}, BBOX),
    "bbox-beyond-float32": ({"bbox": [1, 2, 10**40, 4]}, BBOX),
    "bbox-of-negative-size": ({"bbox": [9, 9, -3, 4]}, BBOX),
    "score-is-text": ({"score": "0.5"}, r"'score' must be a finite number, got '0\.5' \(str\)"),
    "score-is-null": ({"score": None}, "'score' must be a finite number, got None"),
    "score-is-nan": ({"score": math.nan}, r"'score' must be a finite number, got nan \(float\)"),
    "image-id-is-text": (
        {"image_id": "4"},
        r"'image_id' is '4' \(str\); must be one of the data set's ids, integers from 4 to 9",
    ),
    "image-id-is-a-float": ({"image_id": 4.0}, r"'image_id' is 4\.0 \(float\); must be"),
    "image-id-is-a-list": ({"image_id": [4]}, r"'image_id' is \[4\] \(list\); must be"),
    "image-id-is-unknown": ({"image_id": 5}, r"'image_id' is 5 \(int\); must be"),
    "category-id-is-text": ({"category_id": "7"}, r"'category_id' is '7' \(str\); must be"),
    "category-id-is-unknown": ({"category_id": 0}, r"'category_id' is 0 \(int\); must be"),
}


@pytest.mark.parametrize(("change", "told"), WRONG.values(), ids=WRONG)
def test_wrong_entries(tmp_path, change, told):
    with pytest.raises(DatasetError, match=told) as error:
        read(tmp_path / "r.json", [GOOD, {**GOOD, **change}])
    assert "r.json is not a results file of truth.json" in str(error.value)


@pytest.mark.parametrize("key", GOOD)
def test_an_entry_that_lacks_a_key(tmp_path, key):
    with pytest.raises(DatasetError, match=rf"\[0\]: '{key}' .* None"):
        read(tmp_path / "r.json", [{k: v for k, v in GOOD.items() if k != key}])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[", "not valid JSON"),
        ("", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ({"annotations": []}, r"expected a list of detections, got .* \(dict\)"),
        (3, r"expected a list of detections, got 3 \(int\)"),
        ([[1, 2]], r"\[0\]: must be an object with image_id, .* got \[1, 2\] \(list\)"),
    ],
)
def test_files_that_are_no_results(tmp_path, content, told):
    with pytest.raises(DatasetError, match=told):
        read(tmp_path / "r.json", content)


def test_a_file_that_is_not_there_or_is_no_text(tmp_path):
    with pytest.raises(DatasetError, match=r"gone\.json cannot be read: No such file"):
        read_results(tmp_path / "gone.json", TRUTH, [4], [7])
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(DatasetError, match=r"binary\.json cannot be read as text"):
        read_results(tmp_path / "binary.json", TRUTH, [4], [7])


def test_detections_that_are_not_finite_are_left_out_with_a_warning(caplog):
    bad = [{**GOOD, "score": math.nan}, {**GOOD, "image_id": 9, "bbox": [1, math.inf, 3, 4]}]
    assert finite("mine", [bad[0], GOOD, bad[1]]) == [GOOD]
    assert "mine: left out: detections with NaN or infinity (2, in 2 images, such as" in caplog.text
    caplog.clear()
    assert finite("mine", [GOOD]) == [GOOD] and finite("mine", []) == []
    assert not caplog.records


def test_no_two_test_sets_share_a_folder_or_a_name():
    sets = ["a/b.json:c", "a_b.json:c", "a/b.json/c", "d", "d"]
    prefixes = [set_prefix(name, sets) for name in sets]
    assert prefixes == ["a_b.json:c/", "a_b.json:c_2/", "a_b.json_c_3/", "d/", "d/"]
    assert len({results_folder("run", name, sets) for name in sets}) == 4
    assert set_prefix("d", ["d", "d"]) == set_prefix("d", ["d"]) == ""
