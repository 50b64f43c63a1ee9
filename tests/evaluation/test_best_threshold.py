"""report.json beside a model: which one counts, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from onenet.errors import OneNetError
from onenet.evaluation.best_threshold import best_threshold, find_report
from onenet.files import hash_of

NAMES = ["cat", "dog"]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    file = tmp_path / "model.pth"
    file.write_bytes(b"weights")
    return file


def write(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    content = {"best_threshold": 0.31, "class_names": NAMES, "weights": None, **changes}
    path = folder / "report.json"
    path.write_text(json.dumps(content))
    return path


def test_the_report_beside_the_weights_counts(weights):
    folder = weights.parent
    write(folder / "inference", best_threshold=0.2)
    assert best_threshold(weights, NAMES, checkpoint=True) == 0.2
    write(folder)
    assert best_threshold(weights, NAMES, checkpoint=True) == 0.31


def test_the_only_one_of_several_test_sets(weights):
    one = write(weights.parent / "inference" / "a")
    assert find_report(weights) == one
    write(weights.parent / "inference" / "b")
    with pytest.raises(OneNetError, match=r"reports of 2 test sets: .*a.report\.json, .* Copy"):
        find_report(weights)


def test_the_report_of_these_weights_counts_whatever_its_classes_are_called(weights):
    write(weights.parent, weights={"file": "x.pth", "sha256": hash_of(weights)}, class_names=["a"])
    assert best_threshold(weights, NAMES, checkpoint=True) == 0.31


def test_the_report_of_other_weights_is_refused(weights):
    write(weights.parent, weights={"file": "old.pth", "sha256": "0" * 64})
    told = r"report of other weights \(old\.pth\) than .*model\.pth\. Run train_net\.py --config"
    with pytest.raises(OneNetError, match=told):
        best_threshold(weights, NAMES, checkpoint=True)
    assert best_threshold(weights, NAMES, checkpoint=False) == 0.31  # an exported file beside it


def test_without_a_report_the_error_says_what_to_run(weights):
    with pytest.raises(OneNetError, match=r"--eval-only --report MODEL\.WEIGHTS .*model\.pth OUTP"):
        best_threshold(weights, NAMES, checkpoint=True)
    with pytest.raises(OneNetError, match=r"exported without one, .*then export again"):
        best_threshold(weights, NAMES, checkpoint=False)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"best_threshold": None}, "no best threshold, since no detection was right"),
        ({"best_threshold": "0.3"}, "must be from 0 to 1, got '0.3'"),
        ({"best_threshold": 1.5}, "must be from 0 to 1, got 1.5"),
        ({"best_threshold": True}, "must be from 0 to 1, got True"),
        ({"class_names": ["cat", "cow"]}, "other classes: .*cow"),
        ({"class_names": None}, "other classes: None"),
    ],
)
def test_a_report_that_does_not_fit(weights, changes, told):
    write(weights.parent, **changes)
    with pytest.raises(OneNetError, match=told):
        best_threshold(weights, NAMES, checkpoint=True)


@pytest.mark.parametrize("text", ["[]", "{}", "{"])
def test_a_file_that_is_no_report(weights, text):
    (weights.parent / "report.json").write_text(text)
    with pytest.raises(OneNetError, match=r"report\.json is not"):
        best_threshold(weights, NAMES, checkpoint=True)
