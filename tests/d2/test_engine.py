"""Training and evaluation through Detectron2, from the command line's words."""

from __future__ import annotations

import pytest

pytest.importorskip("detectron2")

import json
import logging
from pathlib import Path

import numpy as np
import torch
import torchvision
from detectron2.data import DatasetCatalog, build_detection_test_loader
from helpers.detectron2_runs import d2_process, name_of, train_d2, trained
from helpers.runs import CLASSES, CURVES, edit_json, load, metrics, train, write_config
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from onenet.d2 import Trainer, main
from onenet.d2 import predictor as d2_predictor
from onenet.d2.config import load_cfg
from onenet.d2.datasets import register_datasets
from onenet.lightning import predictor as embedded_predictor
from onenet.lightning.config import load_cfg as load_embedded

LOSSES = {"loss_ce", "loss_giou", "loss_bbox", "total_loss"}


@pytest.fixture(scope="module")
def finished(shapes, tmp_path_factory) -> Path:
    """The folder of a run of 2 iterations with a picture, saved after each."""
    folder = tmp_path_factory.mktemp("finished")
    config = write_config(
        folder, shapes, SOLVER__MAX_ITER=2, SOLVER__CHECKPOINT_PERIOD=1, VIS_PERIOD=2, **CURVES
    )
    train_d2(config)
    return folder / "run"


def test_a_run_leaves_what_detectron2s_users_expect(finished):
    names = {path.relative_to(finished).as_posix() for path in finished.rglob("*.*")}
    assert names > {
        "config.yaml", "log.txt", "metrics.json", "model_0000000.pth", "model_0000001.pth",
        "model_final.pth", "inference/coco_instances_results.json",
    }  # fmt: skip
    assert (finished / "last_checkpoint").read_text() == "model_final.pth"
    curves = {key for line in metrics(finished) for key in line}
    assert curves > LOSSES | {"bbox/AP", "bbox/AP-star", "lr", "iteration"}
    events = EventAccumulator(str(finished)).Reload()
    assert set(events.Tags()["scalars"]) > LOSSES | {"bbox/AP50"}
    assert len(events.Tags()["images"]) == 1


def test_onenets_own_log_is_in_the_run_s(finished):
    log = (finished / "log.txt").read_text()
    assert log.count("Detectron2's engine (a test)") == 1
    assert "onenet" in log and "d2.engine" not in log.split("Detectron2's engine")[0][-40:]


def test_checkpoints_can_be_read_safely_and_hold_the_classes(finished):
    content = load(finished / "model_final.pth")
    assert content["class_names"] == CLASSES and content["trainer"]["iteration"] == 1
    config = write_config(finished.parent / "use", Path("no/data"))
    for module, read in ((embedded_predictor, load_embedded), (d2_predictor, load_cfg)):
        cfg = read(config, ["MODEL.WEIGHTS", str(finished / "model_final.pth")])
        assert module.Predictor(cfg).class_names == CLASSES


def test_an_interrupted_run_goes_on(shapes, tmp_path, monkeypatch, capsys):
    config = write_config(tmp_path, shapes, SOLVER__MAX_ITER=4, SOLVER__CHECKPOINT_PERIOD=2)
    done, step = [], Trainer.run_step

    def run_step(self):
        if self.iter == 3 and 3 not in done[-1:] and "--resume" not in flags:
            raise KeyboardInterrupt
        done.append(self.iter)
        step(self)

    monkeypatch.setattr(Trainer, "run_step", run_step)
    flags: tuple[str, ...] = ()
    with pytest.raises(SystemExit) as stop:
        train_d2(config)
    assert stop.value.code == 130 and "--resume" in capsys.readouterr().err
    saved = load(tmp_path / "run" / "model_0000001.pth")
    flags = ("--resume",)
    seen = {}
    monkeypatch.setattr(
        Trainer, "train", lambda self, go=Trainer.train: seen.update(self=self) or go(self)
    )
    train_d2(config, *flags)
    assert done == [0, 1, 2, 2, 3]
    state = load(tmp_path / "run" / "model_final.pth")["trainer"]
    assert state["iteration"] == 3 and saved["trainer"]["iteration"] == 1
    # The optimiser's momentum goes on, too: it has been loaded on the resumed run's parameters.
    assert seen["self"].start_iter == 2 and len(seen["self"].optimizer.state) > 0
    assert "2 iterations are done" in (tmp_path / "run" / "log.txt").read_text()
    assert {line["iteration"] for line in metrics(tmp_path / "run")} >= {2, 3}


def test_the_optimisers_state_is_resumed(finished, shapes):
    config = finished.parent / "tiny.yaml"
    with d2_process():
        cfg = load_cfg(config)
        register_datasets(cfg.DATASETS.TRAIN)
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=True)
    saved = load(finished / "model_final.pth")
    loaded = trainer.optimizer.state_dict()["state"]
    for key, state in saved["trainer"]["_trainer"]["optimizer"]["state"].items():
        assert torch.equal(loaded[key]["momentum_buffer"], state["momentum_buffer"])
    assert trainer.start_iter == 2 and trainer.scheduler.last_epoch == 2
    for key, value in trainer.model.state_dict().items():
        assert torch.equal(value, saved["model"][key])


def test_a_checkpoint_of_the_embedded_engine_is_not_resumed_as_if_it_were_its_own(
    shapes, tmp_path, capsys
):
    config = write_config(tmp_path, shapes, SOLVER__MAX_ITER=1, DATASETS__TEST=[])
    train(config)
    with pytest.raises(SystemExit) as stop:
        train_d2(config, "--resume", "SOLVER.MAX_ITER", 2)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "--engine lightning" in error
    assert f"MODEL.WEIGHTS {tmp_path}/run/model_0000000.pth" in error


def test_a_checkpoint_whose_classes_have_another_order_is_mapped_by_name(shapes, tmp_path, capsys):
    config, weights = trained(tmp_path, shapes, {"class_names": CLASSES[::-1]})
    train_d2(config, "--eval-only", "OUTPUT_DIR", tmp_path / "d2")
    told = f"{weights} has the same classes in another order (cross, star, triangle, square, ring, "
    assert told in capsys.readouterr().out
    train(config, "--eval-only", "OUTPUT_DIR", tmp_path / "embedded")
    counts = [
        np.bincount([one["category_id"] for one in json.loads(path.read_text())])
        for path in sorted(tmp_path.glob("*/inference/coco_instances_results.json"))
    ]
    assert counts[0].max() > 100 and abs(counts[0] - counts[1]).max() < 5  # roundings


def test_fine_tuning_for_other_names_resets_the_class_layer(shapes, tmp_path):
    _, weights = trained(
        tmp_path / "before", shapes, {"class_names": ["a", "b", "c", "d", "e", "f"]}
    )
    config = write_config(
        tmp_path, shapes, MODEL__WEIGHTS=str(weights), DATASETS__TEST=[], SOLVER__MAX_ITER=1,
        SOLVER__BASE_LR=1e-30,
    )  # fmt: skip
    train_d2(config)
    told = "on as many classes, but on none of the same name (a, b, c, d, e, f; here circle, "
    assert told in (tmp_path / "run" / "log.txt").read_text()
    new, old = (load(p)["model"] for p in (tmp_path / "run" / "model_final.pth", weights))
    assert not torch.equal(new["head.cls_score.weight"], old["head.cls_score.weight"])
    assert torch.equal(new["head.feat1.weight"], old["head.feat1.weight"])


@pytest.mark.parametrize("changes", [{}, {"TEST__DETECTIONS_PER_IMAGE": 130}])
def test_evaluation_equals_the_embedded_engines(shapes, tmp_path, monkeypatch, changes):
    config, _ = trained(tmp_path, shapes, **changes)
    seen = []
    monkeypatch.setattr(main, "verify_results", lambda cfg, found: seen.append(found))
    expected = train(config, "--eval-only", "OUTPUT_DIR", tmp_path / "embedded")
    train_d2(config, "--eval-only", "OUTPUT_DIR", tmp_path / "d2")
    ours, theirs = (
        json.loads((tmp_path / name / "inference/coco_instances_results.json").read_text())
        for name in ("embedded", "d2")
    )
    assert len(ours) == len(theirs) > 100  # boxes without area are none

    def key(result):
        return result["image_id"], result["category_id"], *np.round(result["bbox"], 1)

    assert len({*map(key, ours)} ^ {*map(key, theirs)}) < 0.02 * len(ours)  # ties, roundings
    for name, value in seen[0]["bbox"].items():
        assert value == pytest.approx(expected[f"bbox/{name}"], abs=1e-3, nan_ok=True), name


def test_expected_results_are_checked(shapes, tmp_path):
    config, _ = trained(tmp_path, shapes)
    words = ("--eval-only", "TEST.EXPECTED_RESULTS")
    train_d2(config, *words, "[['bbox', 'AP', 0.0, 50.0]]")
    with pytest.raises(SystemExit) as stop:
        train_d2(config, *words, "[['bbox', 'AP', 99.0, 0.1]]")
    assert stop.value.code == 1


def test_fine_tuning_starts_the_class_layer_anew(shapes, tmp_path):
    _, weights = trained(tmp_path / "six", shapes)

    def merge(content):
        content["categories"] = content["categories"][:1]
        for annotation in content["annotations"]:
            annotation["category_id"] = content["categories"][0]["id"]

    data = edit_json(shapes, tmp_path / "one", "train", merge)
    config = write_config(
        tmp_path, shapes, MODEL__WEIGHTS=str(weights), MODEL__OneNet__NUM_CLASSES=1,
        DATASETS__TRAIN=[name_of(data, "train")], DATASETS__TEST=[], SOLVER__MAX_ITER=1,
    )  # fmt: skip
    train_d2(config)
    assert "the class layer keeps its initialisation" in (tmp_path / "run" / "log.txt").read_text()
    assert load(tmp_path / "run" / "model_final.pth")["model"]["head.cls_score.bias"].shape == (1,)


def test_imagenet_weights_of_torchvision_are_taken(shapes, tmp_path):
    source = torchvision.models.resnet18(weights=None)
    torch.save(source.state_dict(), tmp_path / "resnet18.pth")
    config = write_config(tmp_path, shapes, MODEL__WEIGHTS=str(tmp_path / "resnet18.pth"))
    with d2_process():
        cfg = load_cfg(config)
        register_datasets(cfg.DATASETS.TRAIN)
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=False)
    weight = trainer.model.backbone.res3[0].conv2.weight
    assert torch.equal(weight, source.layer2[0].conv2.weight)
    assert trainer.start_iter == 0


def test_gradients_are_clipped_before_the_step(shapes, tmp_path):
    config = write_config(
        tmp_path, shapes, SOLVER__MAX_ITER=1, SOLVER__BASE_LR=1.0, SOLVER__WARMUP_ITERS=0,
        SOLVER__MOMENTUM=0.0, SOLVER__WEIGHT_DECAY=0.0, DATASETS__TEST=[],
        SOLVER__CLIP_GRADIENTS__ENABLED=True, SOLVER__CLIP_GRADIENTS__CLIP_TYPE="full_model",
        SOLVER__CLIP_GRADIENTS__CLIP_VALUE=0.01,
    )  # fmt: skip
    with d2_process():
        cfg = load_cfg(config)
        register_datasets(cfg.DATASETS.TRAIN)
        trainer = Trainer(cfg)
        before = [p.detach().clone() for p in trainer.model.parameters()]
        trainer.train()
    parts = zip(trainer.model.parameters(), before, strict=True)
    moved = sum((p.detach() - b).square().sum() for p, b in parts).sqrt()
    assert moved.item() == pytest.approx(0.01, rel=1e-2)


def test_test_images_come_in_batches_of_one_shape(shapes, tmp_path):
    def turn(content):
        for i, record in enumerate(content["images"]):
            record["height"], record["width"] = (40, 64) if i % 2 else (20, 64)

    data = edit_json(shapes, tmp_path / "turned", "val", turn)
    cfg = load_cfg(write_config(tmp_path, data, TEST__IMS_PER_BATCH=2))
    register_datasets(cfg.DATASETS.TEST)
    loader = Trainer.build_test_loader(cfg, cfg.DATASETS.TEST[0]).loader
    assert loader.batch_sampler.batch_size == 2
    records = DatasetCatalog.get(cfg.DATASETS.TEST[0])
    order = [records[i]["height"] for i in loader.batch_sampler.sampler]
    assert sorted(loader.batch_sampler.sampler) == list(range(6))
    assert order == [20] * 3 + [40] * 3


def test_evaluation_in_batches_is_that_of_single_images(shapes, tmp_path):
    config, _ = trained(tmp_path, shapes)
    results = []
    for count in (1, 4):
        output = tmp_path / str(count)
        train_d2(config, "--eval-only", "OUTPUT_DIR", output, "TEST.IMS_PER_BATCH", count)
        results.append(json.loads((output / "inference/coco_instances_results.json").read_text()))
    assert len(results[0]) == len(results[1]) > 100
    scores = [sorted(r["score"] for r in result) for result in results]
    np.testing.assert_allclose(*scores, atol=1e-5)


@pytest.mark.parametrize("precision", ["float16", "half"])
def test_a_precision_that_cannot_be_ends_the_program(shapes, tmp_path, capsys, precision):
    config, _ = trained(tmp_path, shapes)
    with pytest.raises(SystemExit) as stop:
        train_d2(config, "--eval-only", "TEST.PRECISION", precision)
    assert stop.value.code == 2 and "error: TEST.PRECISION" in capsys.readouterr().err


def test_detectron2s_own_loader_takes_a_registered_name(shapes, tmp_path):
    cfg = load_cfg(write_config(tmp_path, shapes))
    register_datasets(cfg.DATASETS.TEST)
    batch = next(iter(build_detection_test_loader(cfg, cfg.DATASETS.TEST[0])))
    assert batch[0]["image"].shape == (3, 64, 64)


def test_the_log_is_seen_by_whoever_uses_the_trainer(shapes, tmp_path):
    with d2_process():
        logging.getLogger("onenet").handlers.clear()
        cfg = load_cfg(write_config(tmp_path, shapes))
        register_datasets(cfg.DATASETS.TRAIN)
        Trainer(cfg)
        assert logging.getLogger("onenet").handlers
        assert logging.getLogger("onenet").isEnabledFor(logging.INFO)
