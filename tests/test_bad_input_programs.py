"""Programs end wrong command lines with one line and a status, and a traceback on request."""

from __future__ import annotations

import argparse
from typing import Any

import pytest
from helpers.demo_run import demo, fails, fakes, write_image  # noqa: F401
from helpers.project import load_script

from onenet.cli import run_program
from onenet.errors import (
    CheckpointError,
    ConfigError,
    DatasetError,
    ExportedModelError,
    ExportError,
    NonFiniteError,
    OneNetError,
    UnreadableImageError,
)

ERRORS = (ConfigError, DatasetError, UnreadableImageError, CheckpointError, ExportError)
ERRORS += (ExportedModelError, NonFiniteError)


@pytest.mark.parametrize("kind", ERRORS)
def test_every_error_of_the_project_is_a_onenet_error(kind):
    assert issubclass(kind, OneNetError)
    assert issubclass(kind, FloatingPointError if kind is NonFiniteError else ValueError)


def ended(capsys: pytest.CaptureFixture, error: BaseException, *words: str) -> tuple[int, str]:
    """Exit status and stderr of a program that raises an error."""

    def run(_: argparse.Namespace) -> None:
        raise error

    with pytest.raises(SystemExit) as stop:
        run_program(argparse.ArgumentParser(), run, words)
    return stop.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ConfigError("no"), 2, "error: no\n"),
        (NonFiniteError("nan"), 1, "error: nan\n"),
        (FileNotFoundError(2, "No such file", "a.txt"), 2, "[Errno 2] No such file: 'a.txt'\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_how_a_program_ends(capsys, error, status, line):
    found, told = ended(capsys, error)
    assert (found, told.count("\n")) == (status, 1) and told.endswith(line)


def test_a_fault_of_the_program_itself_is_not_dressed_up():
    def run(_: argparse.Namespace) -> None:
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        run_program(argparse.ArgumentParser(), run, [])


def test_the_traceback_comes_before_the_line(capsys):
    status, told = ended(capsys, DatasetError("bad"), "--traceback")
    assert status == 2 and told.startswith("Traceback (most recent call last):")
    assert "in run\n" in told and told.splitlines()[-1] == "error: bad"


def test_a_program_without_faults_returns_what_it_did():
    assert run_program(argparse.ArgumentParser(), lambda args: 7, []) == 7


# A wrong command line for each program.
PROGRAMS = {
    "tools/ablate.py": ["gone.yaml", "--dataset", "gone.json:a", "gone.json:b", "--output", "o"],
    "tools/dev/benchmark.py": ["--configs", "gone.yaml", "--parts", "inference", "--quick"],
    "tools/check_dataset.py": ["gone.json:here"],
    "tools/compare.py": ["gone.yaml", "--dataset", "gone.json:a", "gone.json:b", "--output", "o"],
    "tools/convert_to_coco.py": [
        "yolo", "--annotations", "gone", "--images", "gone", "--classes", "c", "--output", "o",
    ],
    "tools/convert_torchvision_to_d2.py": ["--input", "gone.pth", "--output", "a.pkl"],
    "tools/describe_dataset.py": ["gone.json:here"],
    "tools/download_weights.py": ["--api", "gone"],
    "tools/export.py": ["--config-file", "gone.yaml", "--output", "a.onnx"],
    "tools/make_shapes_dataset.py": ["--size", "0"],
    "tools/preview_batch.py": ["--config-file", "gone.yaml", "--output", "a.png"],
    "tools/report.py": ["--input", "gone.json", "--dataset", "gone.json:here", "--output", "o"],
    "tools/visualize_assignment.py": ["--config-file", "gone.yaml", "--output", "a.png"],
    "tools/visualize_json_results.py": [
        "--input", "gone.json", "--dataset", "gone.json:here", "--output", "a.png",
    ],
    "tools/visualize_scores.py": [
        "--config-file", "gone.yaml", "--weights", "gone.pth", "--output", "a.png",
    ],
    "demo/demo.py": ["--onnx", "gone.onnx", "--input", "gone.png", "--output", "a.png"],
}  # fmt: skip


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_ends_in_a_line_or_a_traceback(tmp_path, monkeypatch, capsys, program):
    monkeypatch.chdir(tmp_path)
    script = demo if program == "demo/demo.py" else load_script(program)
    for flags in ([], ["--traceback"]):
        with pytest.raises(SystemExit) as stop:
            script.main([*flags, *PROGRAMS[program]])
        told = capsys.readouterr().err
        assert stop.value.code == 2 and told.splitlines()[-1].startswith("error: ")
        assert ("Traceback (most recent call last)" in told) == bool(flags)


# -- the demo --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.xyz", "a.gif", "a.PDF", "sub.d/a.tga"])
def test_a_picture_without_a_known_ending(tmp_path, capsys, name):
    image = write_image(tmp_path / "in.png")
    error = fails(capsys, "--input", image, "--output", tmp_path / name)
    assert f"{name}: " in error and ".jpg, .jpeg, .png" in error and "create it first" in error
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("name", ["out", "v1.0", "made.d"])
def test_an_output_folder_with_or_without_a_point(tmp_path, name):
    image = write_image(tmp_path / "in.png")
    if name == "made.d":
        (tmp_path / name).mkdir()
    words: list[Any] = ["--config-file", "c", "--input", image, "--output", tmp_path / name]
    demo.main([*map(str, words)])
    assert (tmp_path / name / "in.png").is_file()
