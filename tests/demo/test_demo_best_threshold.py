"""``--confidence-threshold best``: from the report beside the weights, or the exported file."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from helpers.demo_run import BrightPart, demo, fails, fails_with, fakes, run, write_image  # noqa: F401
from helpers.onnx_example import INFO, white, write_model


def write_report(folder, threshold, names):
    content = {"best_threshold": threshold, "class_names": names, "weights": None}
    (folder / "report.json").write_text(json.dumps(content))


@pytest.fixture
def words(tmp_path):
    image = write_image(tmp_path / "a.png")
    return ["--input", image, "--json", tmp_path / "o.json", "--confidence-threshold", "best"]


def scores(tmp_path) -> list[float]:
    (entry,) = json.loads((tmp_path / "o.json").read_text())
    return [found["score"] for found in entry["detections"]]


def test_from_the_report_beside_the_weights(tmp_path, words, monkeypatch, capsys):
    monkeypatch.setattr(BrightPart, "weights", tmp_path / "model.pth", raising=False)
    error = fails(capsys, *words)
    assert "no best threshold is known of" in error and "--eval-only --report" in error
    for threshold, found in ((0.35001, [0.9]), (0.3, [0.9, 0.35])):
        write_report(tmp_path, threshold, BrightPart.class_names)
        run(*words)
        assert scores(tmp_path) == found
        assert f"Confidence threshold of best F1: {threshold:g}" in capsys.readouterr().err


@pytest.mark.parametrize(("threshold", "count"), [(0.0, 2), (0.5, 1)])
def test_from_the_exported_file(tmp_path, words, threshold, count):
    metadata = replace(INFO, best_threshold=threshold).to_metadata()
    write_image(tmp_path / "a.png", white(64, 96))
    demo.main(["--onnx", str(write_model(tmp_path / "m.onnx", metadata)), *map(str, words)])
    assert len(scores(tmp_path)) == count


def test_an_exported_file_without_one(tmp_path, words, capsys):
    model = write_model(tmp_path / "m.onnx")
    error = fails_with(capsys, "--onnx", model, *words)
    assert "it was exported without one" in error and "then export again" in error


def test_other_words_are_refused(words, capsys):
    with pytest.raises(SystemExit):
        run(*words[:-1], "good")
    assert "--confidence-threshold: invalid confidence value: 'good'" in capsys.readouterr().err
