"""The command ``onenet``."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile

import pytest
from helpers.onnx_example import white, write_model
from helpers.project import ROOT
from helpers.runs import trained, unchanged_process
from PIL import Image

from onenet.api.console import COMMANDS, main


def ended(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        main([*map(str, words)])
    return stop.value.code, capsys.readouterr()


def test_help_lists_the_commands_and_imports_none(capsys):
    for flag in ("-h", "--help"):
        main([flag])
        out = capsys.readouterr().out
        assert all(f"\n  {name} " in out for name in COMMANDS)
    code = (
        "import sys; from onenet.api.console import main; main(['--help'])\n"
        "assert not {'torch', 'cv2', 'numpy', 'yaml'} & set(sys.modules)"
    )
    subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "projects/OneNet", check=True, capture_output=True
    )
    main(["--version"])
    assert capsys.readouterr().out.startswith("onenet 0.")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["trian"], "error: onenet has no command trian; did you mean 'train'?"),
        (["detect"], "error: onenet has no command detect; did you mean 'predict'?"),
        ([], "usage: onenet COMMAND"),
    ],
)
def test_other_words(capsys, words, told):
    status, printed = ended(capsys, *words)
    assert status == 2 and printed.err.startswith(told) and not printed.out


@pytest.mark.parametrize("name", ["train", "eval", "predict", "export"])
def test_each_command_has_help_under_its_name(capsys, name):
    before = sys.argv[0]
    status, printed = ended(capsys, name, "--help")
    assert status == 0 and printed.out.startswith(f"usage: onenet {name} [-h]")
    assert sys.argv[0] == before


def test_an_evaluation_by_name_of_a_shipped_config(capsys, tmp_path):
    words = ["--config-file", "onenet.res18.nodcn", "--engine", "lightning", "DATASETS.TEST"]
    with unchanged_process():
        status, printed = ended(capsys, "eval", *words, '("gone.json:x",)')
    assert status == 2 and "no annotation file 'gone.json'" in printed.err


def test_predicting_with_a_checkpoint_alone(shapes, tmp_path, capsys):
    config, weights = trained(tmp_path, shapes)
    config.rename(tmp_path / "config.yaml")
    words = ["predict", "--weights", weights, "--engine", "lightning", "--input", shapes / "val"]
    with unchanged_process():
        main([*map(str, words), "--json", str(tmp_path / "o.json"), "--tiles", "32"])
    out = capsys.readouterr().out
    assert out.startswith("6 images, ") and "merged into these across seams of tiles)" in out
    status, printed = ended(capsys, *words, "--json", weights)
    assert status == 2 and f"overwrite the input {weights}" in printed.err


def test_tiles_of_an_exported_model(tmp_path, capsys):
    model = write_model(tmp_path / "model.onnx")
    Image.fromarray(white(64, 96)).save(tmp_path / "a.png")
    words = ["predict", "--onnx", model, "--input", tmp_path / "a.png", "--json", tmp_path / "o"]
    main([*map(str, words), "--tiles", "64", "--overlap", "0.5"])
    # The model sees an object that fills whatever it is given.
    assert "1 image, 1 detection (1 more box" in capsys.readouterr().out
    for more, told in (
        (("--tiles", 20), "tiles must be 0 or a side of at least 32 px, got 20"),
        (("--tiles", 64, "--overlap", 2), "overlap of tiles must be between 0 and 0.9, got 2.0"),
        (("--tiles", 0, "--overlap", 0.1), "--overlap is for tiles: give --tiles"),
        (("--overlap", 0.1), "--overlap is for tiles: give --tiles"),
    ):
        status, printed = ended(capsys, *words, *more)
        assert status == 2 and told in printed.err


@pytest.mark.slow
def test_installed_from_a_wheel(tmp_path):
    """Outside the repository, not editable: the command, and the configs by name."""
    wheel = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*wheel, "-w", str(tmp_path), str(ROOT)], check=True)
    (file,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        archive.extractall(tmp_path / "site")
        (entry,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        assert "onenet = onenet.api.console:main" in archive.read(entry).decode()
    code = "from onenet.api.console import main; main()"
    words = ["eval", "--config-file", "onenet.res18.bccd.yaml", "--engine", "lightning"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words, "DATASETS.TEST", "('gone.json:x',)"],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and "no annotation file 'gone.json'" in done.stderr
