"""JSON that every reader takes."""

from __future__ import annotations

import json
import math

import pytest
from helpers.project import ROOT
from helpers.runs import strict

from onenet.files import open_lines, strict_json


def test_nan_and_infinity_become_null():
    value = {"a": math.nan, "b": [1.5, -math.inf, (math.inf, "NaN")], 3: None, "c": True}
    text = strict_json(value, indent=1)
    assert strict(text) == {"a": None, "b": [1.5, None, [None, "NaN"]], "3": None, "c": True}
    assert text.splitlines()[1] == ' "a": null,'


def test_finite_values_are_written_as_json_does():
    value = {"a": [1e300, -0.0, 10**30, "ä"]}
    assert strict_json(value) == json.dumps(value)
    assert strict_json(value, ensure_ascii=False) == json.dumps(value, ensure_ascii=False)


def test_half_a_line_is_removed(tmp_path):
    file = tmp_path / "metrics.json"
    file.write_text('{"a": 1}\n{"b"')
    with open_lines(file) as lines:
        lines.write('{"c": 2}\n')
    assert file.read_text() == '{"a": 1}\n{"c": 2}\n'


# What is written by json.dumps: it never holds a float that may be NaN.
PLAIN = {
    "onenet/files.py",  # strict_json itself
    "onenet/deploy/runtime.py",  # a model's class names, sizes and flags
    "onenet/api/export.py",
    "tools/_shared/conversion.py",  # data sets, without NaN
    "tools/_shared/shapes_dataset.py",  # drawn data sets
    "tools/dev/benchmarks/evaluation.py",  # made-up data sets
    "tools/dev/benchmarks/memory.py",  # between two processes
}


@pytest.mark.parametrize("dump", ["json.dumps", "json.dump("])
def test_everything_else_writes_strict_json(dump):
    folders = [ROOT / "projects" / "OneNet", ROOT / "tools", ROOT / "demo"]
    files = [file for folder in folders for file in folder.rglob("*.py")]
    found = {
        str(file.relative_to(ROOT)).removeprefix("projects/OneNet/")
        for file in files
        if dump in file.read_text(encoding="utf-8")
    }
    assert found <= PLAIN
