"""Training on hard ground: no objects, NaN, divergence, bfloat16."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.runs import (
    edit_json,
    load,
    metrics,
    replay,
    train,
    unchanged_process,
    write_config,
)

from onenet.checkpoints.files import save_checkpoint
from onenet.lightning.build import build_detector
from onenet.lightning.config import load_cfg


def test_batches_without_objects_train(shapes, tmp_path):
    def empty(content: dict) -> None:
        content["annotations"] = []

    data = edit_json(shapes, tmp_path / "empty", "train", empty)
    config = write_config(
        tmp_path, data, DATALOADER__FILTER_EMPTY_ANNOTATIONS=False, DATASETS__TEST=[],
        SOLVER__MAX_ITER=1, MODEL__RESNETS__NORM="FrozenBN",
    )  # fmt: skip
    train(config)
    (line,) = metrics(tmp_path / "run")
    assert line["loss_ce"] > 0 and line["loss_bbox"] == line["loss_giou"] == 0


def poisoned(shapes: Path, folder: Path) -> Path:
    """A config whose weights are a detector with a NaN."""
    config = write_config(folder, shapes, SOLVER__CHECKPOINT_PERIOD=1)
    with unchanged_process():
        state = build_detector(load_cfg(config)).state_dict()
    state["head.cls_score.bias"][0] = float("nan")
    save_checkpoint(folder / "poisoned.pth", {"model": state})
    return config


@pytest.mark.parametrize("matcher", ["minimum", "hungarian"])
def test_nan_stops_naming_term_iteration_and_images(shapes, tmp_path, capsys, matcher):
    config = poisoned(shapes, tmp_path)
    with pytest.raises(SystemExit) as stop:
        train(config, "MODEL.WEIGHTS", tmp_path / "poisoned.pth", "MODEL.OneNet.MATCHER", matcher)
    assert stop.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and len(error.splitlines()) == 1
    assert "iteration 1" in error and "nan" in error.lower()
    assert ("1: loss_ce = nan" if matcher == "minimum" else "1: cost = nan") in error
    assert sum(f"{i:06d}.jpg" in error for i in range(12)) == 4
    assert "iteration 1" in (tmp_path / "run" / "log.txt").read_text()
    dump = re.search(r"train_net.py --replay (\S+)\. ", error)[1]
    assert dump == str(tmp_path / "run" / "nonfinite_0000001.pt")
    assert replay(dump)
    told = capsys.readouterr().out
    assert "values of head.cls_score.bias were not finite" in told and "loss_ce = nan\n" in told
    assert not (tmp_path / "run" / "last_checkpoint").exists()


def test_divergence_leaves_earlier_checkpoints_whole(shapes, tmp_path, capsys):
    config = write_config(
        tmp_path, shapes, SOLVER__BASE_LR=1e9, SOLVER__WARMUP_FACTOR=0.0, SOLVER__WARMUP_ITERS=2,
        SOLVER__CHECKPOINT_PERIOD=1, DATASETS__TEST=[],
    )  # fmt: skip
    with pytest.raises(SystemExit) as stop:
        train(config)
    assert stop.value.code == 1
    iteration = int(capsys.readouterr().err.split("iteration ")[1].split(":")[0])
    assert iteration > 1
    tag = (tmp_path / "run" / "last_checkpoint").read_text()
    assert tag == f"model_{iteration - 2:07d}.pth"
    first = load(tmp_path / "run" / "model_0000000.pth")["model"]  # its rate was 0
    assert all(value.isfinite().all() for value in first.values())
    assert not (tmp_path / "run" / "model_final.pth").exists()


def test_bfloat16_trains_and_is_evaluated_in_float32(shapes, tmp_path):
    config = write_config(
        tmp_path, shapes, SOLVER__AMP__ENABLED=True, SOLVER__MAX_ITER=1, SOLVER__IMS_PER_BATCH=2,
        INPUT__MIN_SIZE_TRAIN=[32], INPUT__CROP__ENABLED=False,
    )  # fmt: skip
    found = train(config)
    (line, _) = metrics(tmp_path / "run")
    assert np.isfinite(line["total_loss"])
    state = load(tmp_path / "run" / "model_final.pth")["model"]
    assert {v.dtype for v in state.values()} == {torch.float32, torch.int64}
    final, other = tmp_path / "run" / "model_final.pth", tmp_path / "again"
    again = train(config, "--eval-only", "MODEL.WEIGHTS", final, "OUTPUT_DIR", other)
    assert again == pytest.approx(found, nan_ok=True)
    scores = [
        [
            r["score"]
            for r in json.loads((run / "inference/coco_instances_results.json").read_text())
        ]
        for run in (tmp_path / "run", other)
    ]
    # bfloat16 has three digits; another memory format rounds in the seventh.
    assert scores[0] == pytest.approx(scores[1], rel=1e-4)
