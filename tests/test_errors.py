"""What words an error message; the classes are tested where they are raised."""

from __future__ import annotations

import subprocess
import sys

import pytest
from helpers.project import ROOT

from onenet.errors import ConfigError, look_up

HEADS = [("CenterNet", str), ("FCOS", int)]


def test_an_entry_is_found_by_its_name():
    assert look_up(HEADS, "MODEL.OneNet.HEAD", "FCOS") is int


@pytest.mark.parametrize(
    ("name", "advice"), [("centrnet", "; did you mean 'CenterNet'?"), ("YOLO", "")]
)
def test_an_unknown_name_gets_the_choices_and_the_nearest(name: str, advice: str):
    with pytest.raises(ConfigError) as error:
        look_up(HEADS, "MODEL.OneNet.HEAD", name)
    assert str(error.value) == (
        f"MODEL.OneNet.HEAD must be one of CenterNet, FCOS, got {name!r}{advice}"
    )


def test_errors_need_neither_torch_nor_numpy():
    code = "import sys, onenet.errors; print(*{'torch', 'numpy'} & set(sys.modules))"
    folder = ROOT / "projects" / "OneNet"
    run = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert run.stdout.strip() == "", run.stderr
