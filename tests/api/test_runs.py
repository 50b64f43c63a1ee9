"""onenet.train, and a detector's evaluate and export, in a process that goes on afterwards."""

from __future__ import annotations

import logging
import math
import os
import signal
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.runs import CLASSES, write_config

import onenet
from onenet.api.isolation import LOGGERS
from onenet.errors import CheckpointError, ConfigError, DatasetError, NonFiniteError, OneNetError


def state():
    """What a run could leave behind in its process."""
    logs = [logging.getLogger(name) for name in LOGGERS]
    return (
        [(log.level, log.propagate, log.handlers[:]) for log in logs],
        [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        dict(os.environ),
        torch.get_rng_state().tolist(),
        np.random.get_state()[1].tolist(),
        warnings.filters[:],
        torch.backends.cudnn.benchmark,
        torch.are_deterministic_algorithms_enabled(),
    )


def sources(shapes):
    return {
        name: f"{shapes}/annotations/instances_{split}.json:{shapes}/{split}"
        for name, split in (("train", "train"), ("val", "val"))
    }


@pytest.fixture(scope="module", params=["lightning", "detectron2"])
def run(request, shapes, tmp_path_factory):
    """Two trainings in one process, the second from the first one's weights, and what they left."""
    if request.param == "detectron2":
        pytest.importorskip("detectron2")
    folder = tmp_path_factory.mktemp("runs")
    config = write_config(folder, shapes, MODEL__OneNet__NUM_CLASSES=80, OUTPUT_DIR="elsewhere")
    options = {**sources(shapes), "engine": request.param, "max_iter": 2, "steps": [1]}
    before = state()
    first = onenet.train(config, output=folder / "one", **options)
    second = onenet.train(
        str(config), output=str(folder / "two"), weights=folder / "one/model_final.pth",
        batch_size=2, **{"SOLVER.BASE_LR": 1e-9}, **options,
    )  # fmt: skip
    after = state()
    return SimpleNamespace(
        engine=request.param, folder=folder, config=config, options=options,
        detectors=(first, second), states=(before, after),
    )  # fmt: skip


def test_training_gives_a_detector_with_its_metrics(run, shapes):
    first, second = run.detectors
    assert first.class_names == CLASSES
    for detector, name in zip(run.detectors, ("one", "two"), strict=True):
        assert "bbox/AP" in detector.metrics and "bbox/AP-ring" in detector.metrics
        assert detector._files.origin == f"the config in {run.folder / name}/model_final.pth"
        assert detector.weights == str(run.folder / name / "model_final.pth")
        files = {file.name for file in (run.folder / name).iterdir()}
        assert {"log.txt", "metrics.json", "config.yaml", "model_final.pth"} <= files
    found = first.predict(shapes / "val", threshold=0)
    assert len(found) == 6 and all(len(one) > 5 for one in found)
    text = (run.folder / "two" / "log.txt").read_text()
    assert "iteration" in text.lower() and str(run.folder / "two") in text
    assert str(run.folder / "two") not in (run.folder / "one" / "log.txt").read_text()


def test_a_process_is_left_as_it_was(run):
    before, after = run.states
    for one, other in zip(before, after, strict=True):
        assert one == other


def test_evaluating_gives_the_same_metrics_and_leaves_no_files(run, shapes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before, detector = state(), run.detectors[0]
    found = detector.evaluate()
    for name, value in detector.metrics.items():
        assert found[name] == pytest.approx(value, abs=1e-6) or math.isnan(value), name
    assert not list(tmp_path.iterdir()) and state() == before
    found = detector.evaluate(sources(shapes)["train"], output="kept", tiles=32, min_size_test=64)
    assert "bbox/AP" in found
    assert (tmp_path / "kept/inference/coco_instances_results.json").is_file()
    assert "Tiles of 32 px that overlap by 20%: " in (tmp_path / "kept/log.txt").read_text()


def test_tiles_larger_than_the_images_change_no_metric(run):
    detector = run.detectors[0]
    whole, tiled = (detector.evaluate(tiles=tiles) for tiles in (0, 640))
    for name, value in whole.items():
        assert tiled[name] == pytest.approx(value, abs=1e-6) or math.isnan(value), name


def test_errors_are_raised_and_nothing_is_printed(run, capsys, monkeypatch):
    train, folder, options = onenet.train, run.folder, run.options
    before = state()
    for changes, kind, told in (
        ({"output": folder / "one"}, ConfigError, "holds run .* already"),
        ({"max_itr": 2}, ConfigError, "no config key max_itr; did you mean 'max_iter'"),
        ({"num_classes": 80}, DatasetError, "has 6 classes"),
        ({"train": "gone.json:x"}, DatasetError, "no annotation file 'gone.json'"),
        ({"base_lr": -1.0}, ConfigError, "SOLVER.BASE_LR"),
        ({"weights": "gone.pth"}, CheckpointError, "gone.pth: there is no such file"),
        ({"base_lr": 1e30, "max_iter": 9}, NonFiniteError, "iteration"),
    ):
        with pytest.raises(kind, match=told):
            train(run.config, **{"output": folder / f"no{told[:3]}", **options, **changes})
    with pytest.raises(OneNetError, match="engine must be one of|--engine"):
        train(run.config, **{**options, "engine": "tensorflow"})
    assert "error:" not in capsys.readouterr().err and state() == before


def test_exporting_calls_the_program(run, tmp_path):
    detector, seen = run.detectors[0], []
    with pytest.MonkeyPatch.context() as patch:  # what it runs is tested with the program
        patch.setattr("onenet.api.export.run", lambda args: seen.append(vars(args)))
        file = detector.export(str(tmp_path / "model.pt2"), require_sizes=True)
    assert file == tmp_path / "model.pt2" and seen[0]["output"] == str(file)
    assert (seen[0]["format"], seen[0]["require_sizes"]) == ("torch", True)
    assert seen[0]["engine"] == run.engine and seen[0]["opts"][:2] == [
        "MODEL.WEIGHTS",
        detector.weights,
    ]
    for options, told in (
        ({"qantize": True}, "export: unrecognized arguments: --qantize"),
        ({"format": "tflite"}, "export: argument --format: invalid choice: 'tflite'"),
    ):
        with pytest.raises(OneNetError, match=told):
            detector.export(tmp_path / "b.onnx", **options)
    with pytest.raises(OneNetError, match="needs a name that ends with .onnx"):
        detector.export(tmp_path / "b.xyz")
