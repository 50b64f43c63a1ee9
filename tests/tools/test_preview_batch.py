"""preview_batch.py: it draws what training sees."""

from __future__ import annotations

from itertools import islice

import cv2
import pytest
import torch
from helpers.project import load_script
from helpers.runs import write_config

from onenet.lightning.config import load_cfg
from onenet.lightning.loader import build_train_loader

script = load_script("tools/preview_batch.py")


@pytest.fixture
def config(shapes, tmp_path):
    return write_config(tmp_path, shapes, SOLVER__MAX_ITER=8)


def preview(config, *words):
    script.main(["--config-file", str(config), *map(str, words)])


def test_it_draws_what_the_iteration_sees(config, tmp_path, monkeypatch, capsys):
    drawn, draw = [], script.draw
    monkeypatch.setattr(script, "draw", lambda *a: drawn.append(a[1]) or draw(*a))
    words = ["INPUT.AUGMENTATIONS", '["mosaic", "flip"]']
    preview(config, "--iteration", 8, "--output", tmp_path / "a" / "b.png", *words)
    (batch,) = islice(build_train_loader(load_cfg(config, words), start_iteration=7), 1)
    for one, other in zip(drawn[0], batch, strict=True):
        assert torch.equal(one.image, other.image)
        assert torch.equal(one.targets.boxes, other.targets.boxes)
    assert cv2.imread(str(tmp_path / "a" / "b.png")).shape[1] > 4 * 256
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "iteration 8 of 8, SEED 11"
    assert lines[1].startswith("with mosaic(probability=0.5") and lines[1].endswith("(off by now)")
    assert lines[2] == "     flip(probability=0.5, direction='horizontal')"
    assert lines[3].startswith("4 images, ") and lines[3].endswith(f"{tmp_path}/a/b.png")


def test_a_part_of_the_batch_and_a_drawn_seed(config, tmp_path, capsys):
    preview(config, "--count", 1, "--output", tmp_path / "b.jpg", "SEED", -1)
    assert "drawn, as each run draws its own" in capsys.readouterr().out
    assert cv2.imread(str(tmp_path / "b.jpg")).shape[1] < 600


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["--iteration", 9, "--output", "b.png"],
            "--iteration 9: training ends at SOLVER.MAX_ITER 8",
        ),
        (["--output", "b.gif"], "--output b.gif: expected a name that ends with .jpg"),
        (["--output", "b.png", "DATASETS.TRAIN", "()"], "DATASETS.TRAIN is empty"),
        (["--output", "b.png", "INPUT.AUGMENTATIONS", "['mozaic']"], "did you mean 'mosaic'"),
    ],
)
def test_refused(config, tmp_path, monkeypatch, capsys, words, told):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        preview(config, *words)
    assert stop.value.code == 2 and told in capsys.readouterr().err
    assert not list(tmp_path.glob("b.*"))


def test_it_overwrites_no_image_of_the_data(config, shapes, tmp_path, capsys):
    image = shapes / "train" / "000003.jpg"
    before = image.read_bytes()
    with pytest.raises(SystemExit):
        preview(config, "--output", image)
    assert str(image) in capsys.readouterr().err and image.read_bytes() == before
