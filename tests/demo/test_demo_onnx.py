"""demo.py with an exported model."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import cv2
import pytest
from helpers.demo_run import demo, fails_with, write_image
from helpers.onnx_example import white, write_model
from helpers.project import ROOT


@pytest.fixture
def model(tmp_path):
    return write_model(tmp_path / "model.onnx")


def test_detections_of_an_exported_model(tmp_path, model):
    image = write_image(tmp_path / "a.png", white(64, 96))
    words = ["--onnx", model, "--input", image, "--output", tmp_path / "b.png"]
    demo.main([*map(str, words), "--json", str(tmp_path / "o.json")])
    (entry,) = json.loads((tmp_path / "o.json").read_text())
    assert entry["detections"] == [
        {"class": "Käfer", "label": 2, "score": 1.0, "box": [0, 0, 96, 64]}
    ]
    assert cv2.imread(str(tmp_path / "b.png")).shape == (320, 480, 3)


def test_torch_is_not_needed(tmp_path, model):
    image = write_image(tmp_path / "a.png", white(64, 96))
    code = (
        "import runpy, sys\n"
        "sys.modules.update(dict.fromkeys(('torch', 'torchvision', 'lightning')))\n"
        "sys.argv[0] = 'demo/demo.py'\n"
        "sys.path.insert(0, 'demo')\n"
        "runpy.run_path('demo/demo.py', run_name='__main__')\n"
    )
    words = ["--onnx", model, "--input", image, "--output", tmp_path / "b.png"]
    path = os.pathsep.join(filter(None, ("projects/OneNet", os.getenv("PYTHONPATH"))))
    run = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        env={**os.environ, "PYTHONPATH": path},
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "1 image, 1 detection" in run.stdout and (tmp_path / "b.png").is_file()


def test_what_does_not_go_together(tmp_path, model, capsys):
    image = write_image(tmp_path / "a.png")
    rest = ("--input", image, "--output", tmp_path / "o")
    with pytest.raises(SystemExit):
        demo.main(["--onnx", str(model), "--config-file", "c.yaml", *map(str, rest)])
    assert "not allowed with argument" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        demo.main([*map(str, rest)])
    assert (
        "one of the arguments --weights --config-file --onnx is required" in capsys.readouterr().err
    )
    for more in (("--engine", "lightning"), ("--opts", "MODEL.WEIGHTS", "m.pth")):
        assert "remove --engine" in fails_with(capsys, "--onnx", model, *rest, *more)


def test_a_wrong_file_is_one_line(tmp_path, capsys):
    image = write_image(tmp_path / "a.png")
    rest = ("--input", image, "--output", tmp_path / "o")
    assert "there is no such file" in fails_with(capsys, "--onnx", tmp_path / "no.onnx", *rest)
    assert "cannot load" in fails_with(capsys, "--onnx", image, *rest)
