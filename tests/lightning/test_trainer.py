"""Training from end to end on a tiny data set: what a run writes, resuming, several processes."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from helpers.runs import (
    CURVES,
    assert_same,
    edit_json,
    end,
    load,
    metrics,
    start,
    train,
    training_of,
    unchanged_process,
    write_config,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from onenet.lightning.build import build_detector
from onenet.lightning.config import load_cfg

CLASSES = ["circle", "ring", "square", "triangle", "star", "cross"]
LOSSES = {"loss_ce", "loss_giou", "loss_bbox"}


@pytest.fixture(scope="module")
def finished(shapes, tmp_path_factory) -> tuple[Path, dict[str, float]]:
    """An uninterrupted run of 6 iterations that saves after 2, 4 and 6, and evaluates after 3."""
    folder = tmp_path_factory.mktemp("finished")
    config = write_config(
        folder,
        shapes,
        SOLVER__CHECKPOINT_PERIOD=2,
        TEST__EVAL_PERIOD=3,
        DATALOADER__NUM_WORKERS=2,
        SOLVER__OPTIMIZER="ADAMW",
        **CURVES,
    )
    return folder, train(config)


def test_run_leaves_its_files(finished):
    run = finished[0] / "run"
    names = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    (events,) = (name for name in names if name.startswith("events.out.tfevents"))
    assert names - {events} == {
        ".lock",
        "config.yaml",
        "log.txt",
        "run.json",
        "metrics.json",
        "last_checkpoint",
        "model_0000001.pth",
        "model_0000003.pth",
        "model_0000005.pth",
        "model_final.pth",
        "inference/coco_instances_results.json",
    }
    assert (run / "last_checkpoint").read_text() == "model_0000005.pth"
    json.loads((run / "inference" / "coco_instances_results.json").read_text())


def test_config_is_complete_and_reads_back_equal(finished):
    folder, _ = finished
    again = load_cfg(folder / "run" / "config.yaml")
    assert again == load_cfg(folder / "tiny.yaml")
    assert again.SOLVER.MOMENTUM == 0.9  # a default is in the file, too
    assert "MOMENTUM" in (folder / "run" / "config.yaml").read_text()


def test_log_tells_losses_and_ap(finished):
    log = (finished[0] / "run" / "log.txt").read_text()
    assert "iteration 6/6" in log and "images/s" in log and "eta 0:00:00" in log
    assert log.count("APs |") == 2  # after 3 and at the end
    assert "triangle" in log and "model_final.pth" in log


def test_metrics_have_named_values(finished):
    folder, last = finished
    lines = metrics(folder / "run")
    (losses,) = (line for line in lines if "total_loss" in line)
    timings = {"lr", "time", "data_time", "images_per_second"}
    assert set(losses) == {"iteration", "total_loss"} | LOSSES | timings
    assert losses["iteration"] == 6
    assert losses["total_loss"] == pytest.approx(sum(losses[name] for name in LOSSES))
    assert losses["lr"] == pytest.approx(1e-4)  # of the iteration that the line is about
    aps = [line for line in lines if "bbox/AP" in line]
    assert [line["iteration"] for line in aps] == [3, 6]
    assert set(aps[1]) == {"iteration", *last}
    assert {f"bbox/AP-{name}" for name in CLASSES} < set(last)
    assert {f"bbox/{n}" for n in ("AP", "AP50", "AP75", "APs", "APm", "APl")} < set(last)


def test_logged_rate_is_the_one_that_was_used(shapes, tmp_path):
    config = write_config(
        tmp_path, shapes, SOLVER__STEPS=[1], SOLVER__WARMUP_ITERS=0, SOLVER__MAX_ITER=1,
        DATASETS__TEST=[],
    )  # fmt: skip
    assert train(config) is None
    assert metrics(tmp_path / "run")[0]["lr"] == pytest.approx(1e-3)


def test_tensorboard_has_curves_and_pictures(finished):
    events = EventAccumulator(str(finished[0] / "run")).Reload()
    tags = events.Tags()
    curves = {"total_loss", "lr", "images_per_second", "bbox/AP", "bbox/AP-circle"} | LOSSES
    assert curves <= set(tags["scalars"])
    assert [e.step for e in events.Scalars("bbox/AP")] == [3, 6]
    assert 1 <= len(tags["images"]) <= 4
    assert all(tag.startswith("validation/") for tag in tags["images"])
    assert [e.step for e in events.Images(tags["images"][0])] == [3, 6]


def test_final_model_is_the_last_checkpoints(finished):
    run = finished[0] / "run"
    final, last = load(run / "model_final.pth"), load(run / "model_0000005.pth")
    assert set(final) == {"model", "class_names", "config", "run"}
    assert final["class_names"] == CLASSES
    assert_same(final["model"], last["model"])
    assert last["iteration"] == 5
    with unchanged_process():
        model = build_detector(load_cfg(finished[0] / "tiny.yaml"))
    model.load_state_dict(final["model"], strict=True)


def test_evaluating_the_final_model_gives_the_same_ap(finished, tmp_path):
    folder, last = finished
    config = folder / "tiny.yaml"
    again = train(
        config,
        "--eval-only",
        "MODEL.WEIGHTS",
        folder / "run/model_final.pth",
        "OUTPUT_DIR",
        tmp_path,
        "TEST.FUSE",  # which rounds otherwise
        "False",
    )
    assert again == pytest.approx(last, nan_ok=True)
    results = "inference/coco_instances_results.json"
    assert (tmp_path / results).read_bytes() == (folder / "run" / results).read_bytes()


@pytest.mark.slow
def test_killed_and_resumed_ends_like_uninterrupted(finished, tmp_path):
    uninterrupted = finished[0] / "run"
    # Evaluating on the way, as the other run does, makes no difference either.
    changes = ("OUTPUT_DIR", tmp_path, "TEST.EVAL_PERIOD", 0)
    process = start(finished[0] / "tiny.yaml", *changes)
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "model_0000003.pth").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        end(process)
    assert not (tmp_path / "model_final.pth").exists()
    tag = (tmp_path / "last_checkpoint").read_text()
    # The kill came before the next checkpoint, and perhaps before the tag of the last one.
    assert tag in ("model_0000001.pth", "model_0000003.pth")
    train(finished[0] / "tiny.yaml", "--resume", *changes)
    assert "Resumed from" in (tmp_path / "log.txt").read_text()
    for file in ("model_0000005.pth", "model_final.pth"):
        # Weights, BN statistics, optimiser, schedule, seed.
        assert_same(training_of(tmp_path / file), training_of(uninterrupted / file))
    assert not list(tmp_path.glob(".*.partial"))  # nothing half written is left


def test_resuming_a_finished_run_does_no_harm_and_evaluates(finished, tmp_path):
    folder, last = finished
    run = shutil.copytree(folder / "run", tmp_path / "run")
    (run / "model_final.pth").unlink()  # as after a kill during the last evaluation
    found = train(folder / "tiny.yaml", "--resume", "OUTPUT_DIR", run)
    assert found == pytest.approx(last, nan_ok=True)
    both = (training_of(path / "model_final.pth") for path in (run, folder / "run"))
    assert_same(*both)
    assert (run / "last_checkpoint").read_text() == "model_0000005.pth"
    kept = "model_0000005.pth"
    assert (run / kept).stat().st_mtime == (folder / "run" / kept).stat().st_mtime


def test_resume_in_an_empty_folder_starts_a_run(finished, tmp_path):
    config = finished[0] / "tiny.yaml"
    train(config, "--resume", "OUTPUT_DIR", tmp_path, "SOLVER.MAX_ITER", 3, "DATASETS.TEST", "()")
    assert (
        "holds no checkpoint: starting from the first iteration"
        in (tmp_path / "log.txt").read_text()
    )
    first = "model_0000001.pth"
    assert_same(load(tmp_path / first)["model"], load(finished[0] / "run" / first)["model"])


def test_resuming_another_model_is_refused(finished, tmp_path, capsys):
    run = shutil.copytree(finished[0] / "run", tmp_path / "run")
    before = (run / "model_0000005.pth").stat().st_mtime_ns
    with pytest.raises(SystemExit) as stop:
        train(
            finished[0] / "tiny.yaml", "--resume", "OUTPUT_DIR", run,
            "MODEL.OneNet.DECONV_CHANNEL", "[512, 16, 16, 8]",
        )  # fmt: skip
    assert stop.value.code == 2
    told = (
        "model_0000005.pth cannot be resumed with this config: MODEL.OneNet.DECONV_CHANNEL is "
        "[512, 16, 16, 8], its run had [512, 16, 16, 16]. Resume with"
    )
    assert told in capsys.readouterr().err
    assert (run / "model_0000005.pth").stat().st_mtime_ns == before


def test_a_drawn_seed_is_kept_when_resuming(shapes, tmp_path):
    config = write_config(tmp_path, shapes, SEED=-1, SOLVER__CHECKPOINT_PERIOD=1, DATASETS__TEST=[])
    train(config, "SOLVER.MAX_ITER", 1)
    train(config, "--resume", "SOLVER.MAX_ITER", 2)
    run = tmp_path / "run"
    seeds = [load(run / f"model_000000{i}.pth")["seed"] for i in (0, 1)]
    assert seeds[0] == seeds[1] >= 0
    assert f"SEED {seeds[0]} (drawn)" in (run / "log.txt").read_text()


def test_loss_falls_when_a_few_images_are_learnt(shapes, tmp_path):
    def four(content: dict) -> None:
        content["images"] = content["images"][:4]
        ids = {image["id"] for image in content["images"]}
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]

    data = edit_json(shapes, tmp_path / "four", "train", four)
    config = write_config(
        tmp_path,
        data,
        SOLVER__OPTIMIZER="ADAMW",
        SOLVER__BASE_LR=1e-3,
        SOLVER__WARMUP_ITERS=5,
        SOLVER__STEPS=[],
        SOLVER__MAX_ITER=30,
        INPUT__CROP__ENABLED=False,
        INPUT__MIN_SIZE_TRAIN=[64],
        INPUT__RANDOM_FLIP="none",
        DATASETS__TEST=[],
    )
    train(config)
    first, last = (line["total_loss"] for line in metrics(tmp_path / "run"))
    assert last < 0.75 * first


def test_fine_tuning_for_other_classes_keeps_all_but_the_class_layer(finished, shapes, tmp_path):
    def merge(content: dict) -> None:
        content["categories"] = [{"id": 1, "name": "round"}, {"id": 2, "name": "edged"}]
        for annotation in content["annotations"]:
            annotation["category_id"] = 1 if annotation["category_id"] <= 2 else 2

    data = edit_json(shapes, tmp_path / "two", "train", merge)
    config = write_config(
        tmp_path, data, MODEL__OneNet__NUM_CLASSES=2, DATASETS__TEST=[], SOLVER__MAX_ITER=1,
        SOLVER__BASE_LR=1e-30, MODEL__WEIGHTS=str(finished[0] / "run" / "model_final.pth"),
    )  # fmt: skip
    train(config)
    old = load(finished[0] / "run" / "model_final.pth")["model"]
    new = load(tmp_path / "run" / "model_final.pth")
    assert new["class_names"] == ["round", "edged"]
    other_shape = {k for k in old if old[k].shape != new["model"][k].shape}
    assert other_shape == {"head.cls_score.weight", "head.cls_score.bias"}
    kept = "backbone.res2.0.conv1.weight"
    assert torch.equal(old[kept], new["model"][kept])
    assert "the class layer keeps its initialisation" in (tmp_path / "run" / "log.txt").read_text()
