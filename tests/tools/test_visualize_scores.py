"""visualize_scores.py with stand-ins for the models."""

from __future__ import annotations

import cv2
import pytest
import torch
from helpers.project import load_script
from helpers.runs import write_config

from onenet.lightning import predictor
from onenet.structures import Detections

script = load_script("tools/visualize_scores.py")


class Stub:
    """Finds two boxes at one place; the checkpoint's name gives their score."""

    trained_classes = ("ring",)

    def __init__(self, config_file, opts):
        self.score = float(opts[opts.index("MODEL.WEIGHTS") + 1])

    def __call__(self, image):
        boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 9]])
        return Detections(boxes, torch.tensor([self.score, 0.2]), torch.tensor([0, 0]))


@pytest.fixture
def config(shapes, tmp_path, monkeypatch):
    monkeypatch.setattr(predictor, "build_predictor", Stub)
    return write_config(tmp_path, shapes)


def run(config, *words):
    script.main(["--config-file", str(config), "--engine", "lightning", *map(str, words)])


def test_one_model_and_two(config, tmp_path, capsys):
    run(config, "--weights", "0.5", "--count", 1, "--output", tmp_path / "one.png")
    words = ["--weights", "0.5", "--other", "0.9", "--names", "with", "without", "--count", 1]
    run(config, *words, "--output", tmp_path / "two.png")
    one, two = (cv2.imread(str(tmp_path / f"{name}.png")) for name in ("one", "two"))
    assert two.shape[1] == 2 * one.shape[1]
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if ": objects found 0 of" in line]
    assert [line.split(",")[0] for line in lines[1:]] == ["with", "without"]


def test_a_checkpoint_of_other_classes_is_pointed_out(config, tmp_path, caplog):
    run(config, "--weights", "0.5", "--count", 1, "--output", tmp_path / "one.png")
    assert "class 1 is ring in one and circle in the other" in caplog.text


def test_only_detections_of_enough_score_are_drawn(config, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(script, "summary", lambda found, truth: drawn.extend(found))
    words = ["--weights", "0.5", "--count", 1, "--output", tmp_path / "a.png"]
    run(config, *words, "--confidence-threshold", 0.2)
    run(config, *words, "--confidence-threshold", 0.5)
    run(config, *words, "--confidence-threshold", 0.6)
    assert [len(found) for found in drawn] == [2, 1, 0]


def test_by_default_there_are_as_many_detections_as_objects():
    pairs = [Stub(None, ["MODEL.WEIGHTS", score])(None) for score in ("0.9", "0.5")]
    assert [script.threshold(pairs, n) for n in (1, 2, 3)] == pytest.approx([0.9, 0.5, 0.2])
    assert script.threshold(pairs, 5) == 0


def test_the_summary_counts_over_all_images():
    truth = [
        script.Targets(
            torch.tensor([[0.0, 0, 9, 9], [20, 0, 29, 9]]), torch.tensor([0, 1]), (9, 40)
        ),
        script.Targets(torch.tensor([[0.0, 0, 9, 9]]), torch.tensor([0]), (9, 40)),
    ]
    pair = Stub(None, ["MODEL.WEIGHTS", "0.5"])(None)
    expected = "objects found 2 of 3, duplicates 1, detections per object 1.50"
    assert script.summary([pair, pair[:1]], truth) == expected
    assert script.summary([pair[:0], pair[:0]], truth) == "objects found 0 of 3, duplicates 0"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "a.txt"], "--output a.txt: expected a name that ends with .jpg"),
        (["--output", "a.png", "--names", "a", "b"], "--names: expected 1, one per model, got 2"),
        (["--output", "a.png", "--input", "none.jpg"], "--input none.jpg is not in"),
        (["--output", "a.png", "--dataset", "none"], "Unknown data set 'none'"),
    ],
)
def test_what_cannot_be_drawn_is_refused(config, capsys, words, message):
    with pytest.raises(SystemExit) as stopped:
        run(config, "--weights", "0.5", *words)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
