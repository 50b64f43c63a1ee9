"""tools/ablate.py: means and deviations over seeds, and cells without results."""

from __future__ import annotations

import csv
import json
import math

import cv2
import pytest
from helpers.ablate_example import script  # noqa: F401

from _shared.ablations.table import Result, Row, spread, table, write  # isort: skip


def metrics(ap, ap50=50.0, duplicates=1.0):
    return {"bbox/AP": ap, "bbox/AP50": ap50, "bbox/duplicates": duplicates, "bbox/APs": math.nan}


def rows():
    """Rows with all three seeds done; with one done, one failed, one running; with no result."""
    pairs = ((20.0, 29.0), (22.0, 31.0), (27.0, 33.0))
    done = {
        seed: Result(metrics(a, duplicates=seed), metrics(b))
        for seed, (a, b) in enumerate(pairs, 1)
    }
    some = {
        1: Result(metrics(40.0, duplicates=math.nan), metrics(41.0)),
        2: Result(failed=True),
        3: Result(metrics(38.0)),
    }
    return [
        Row({"cost": "off", "rate": "1e-4"}, done, speed=25.0),
        Row({"cost": "on", "rate": "1e-4"}, some),
        Row({"cost": "on", "rate": "1e-3"}, {seed: Result() for seed in (1, 2, 3)}),
    ]


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_means_and_deviations_by_hand():
    """20, 22, 27: mean 23, deviations -3, -1, 4, so sd = sqrt(26 / 2)."""
    assert spread([20, 22, 27]) == (23, pytest.approx(math.sqrt(13)))
    assert spread([7.0]) == (7.0, None) and spread([]) == (None, None)


def test_rows_that_are_done_on_the_way_and_failed():
    lines = table(rows()).splitlines()
    assert cells(lines[0])[:5] == ["cost", "rate", "seeds", "AP", "AP50"]
    # Gains 9, 9, 6: mean 8, sd sqrt(3); duplicates 1, 2, 3.
    assert cells(lines[2])[2:] == [
        "3", "23.0 ± 3.6", "50.0 ± 0.0", "31.0 ± 2.0", "50.0 ± 0.0", "8.0 ± 1.7", "2.00 ± 1.00",
        "25.0",
    ]  # fmt: skip
    assert cells(lines[3]) == [
        "on", "1e-4", "1 of 3, failed: 2", "39.0 ± 1.4", "50.0 ± 0.0", "41.0", "50.0", "1.0",
        "1.00", "",
    ]  # fmt: skip
    assert cells(lines[4]) == ["on", "1e-3", "0 of 3", *[""] * 7]


def test_positives_are_a_column_where_they_were_counted():
    counted = {
        seed: Result(metrics(20.0), metrics(21.0), positives=many)
        for seed, many in ((1, 3.0), (2, 4.0))
    }
    (row, _, other) = rows()
    found = table([Row(row.labels, counted), other]).splitlines()
    assert cells(found[0])[-2:] == ["duplicates", "positives an object"]
    assert cells(found[2])[-1] == "3.50 ± 0.71" and cells(found[3])[-1] == ""


def test_files_hold_every_seed(tmp_path):
    machine = {"command": "python a.py", "cpu": "c", "cores": 2, "cpu_capability": "x"}
    machine |= {"threads": 1, "cpu_flags": [], "versions": {"torch": "2"}}
    text = write(tmp_path, "study", "A study", rows(), machine, ["AP", "duplicates", "images/s"])
    content = (tmp_path / "study.md").read_text()
    assert content.startswith("# A study\n") and text in content and "`python a.py`" in content
    lines = list(csv.DictReader((tmp_path / "study.csv").open(newline="")))
    assert len(lines) == 9 and [line["state"] for line in lines[3:6]] == ["done", "failed", ""]
    assert (lines[1]["cost"], lines[1]["seed"], lines[1]["gain of NMS"]) == ("off", "2", "9.0")
    assert lines[4]["AP"] == "" and lines[5]["AP"] == "38.0" and lines[5]["AP with NMS"] == ""
    found = json.loads((tmp_path / "study.json").read_text(), parse_constant=pytest.fail)
    assert found["rows"][0]["mean"]["AP"] == 23 and found["rows"][0]["images/s"] == 25
    assert found["rows"][1]["seeds"]["2"]["failed"] and found["rows"][2]["mean"]["AP"] is None
    assert found["rows"][0]["seeds"]["3"]["without NMS"]["bbox/APs"] is None
    assert cv2.imread(str(tmp_path / "study.png")).std() > 10
