"""docs/reliability.md: every row of its tables has a test, and every case of those a row."""

from __future__ import annotations

import ast
import re

import pytest
from helpers.project import ROOT

TEXT = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
ROW = re.compile(
    r"^\| (?P<fed>.+?) \| .+ \| `(?P<file>[\w/]+\.py)::(?P<test>\w+)(\[(?P<id>.+)\])?` \|$"
)
ROWS = [match for line in TEXT.splitlines() if (match := ROW.match(line))]
# Tests whose cases have a row each, and the mapping that holds them.
CASES = {
    ("data/test_images.py", "test_refused"): "REFUSED",
    ("data/test_images.py", "test_read"): "READ",
    ("test_bad_input_training.py", "test_trained_on"): "TAKEN",
    ("test_bad_input_training.py", "test_refused"): "REFUSED",
    ("test_bad_input_training.py", "test_weights_refused"): "WEIGHTS",
}


def parsed(file: str) -> ast.Module:
    return ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))


def keys(file: str, name: str) -> set[str]:
    """The keys of a mapping that is assigned at a file's top level."""
    for node in parsed(file).body:
        if isinstance(node, ast.AnnAssign) and node.target.id == name:
            return {key.value for key in node.value.keys}
    raise AssertionError(f"{file} has no {name}")


def test_there_are_many_rows():
    assert len(ROWS) >= 80
    assert len({row["fed"] for row in ROWS}) >= len(ROWS) - 3  # some rows share their input


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["fed"][:40])
def test_a_row_has_its_test(row):
    functions = [n for n in parsed(row["file"]).body if isinstance(n, ast.FunctionDef)]
    assert row["test"] in [function.name for function in functions]
    case = CASES.get((row["file"], row["test"]))
    assert row["id"] is None or case is None or row["id"] in keys(row["file"], case)


@pytest.mark.parametrize(("file", "test"), CASES)
def test_a_case_has_its_row(file, test):
    told = {row["id"] for row in ROWS if (row["file"], row["test"]) == (file, test)}
    assert keys(file, CASES[file, test]) <= told


def test_every_line_of_the_tables_is_a_row():
    tables = [line for line in TEXT.splitlines() if line.startswith("|") and "test_" in line]
    assert len(tables) == len(ROWS)
