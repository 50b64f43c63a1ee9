"""Losses on a test set: what they are, and that measuring them changes nothing."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.runs import edit_json, metrics, train, unchanged_process, write_config

from onenet.assignment.criterion import Criterion, alone, mean_targets
from onenet.data.dataset import CocoDetection
from onenet.data.sources import find_dataset
from onenet.lightning.build import build_detector
from onenet.lightning.config import load_cfg
from onenet.lightning.evaluate import losses, names_of_losses
from onenet.lightning.loader import build_loss_loader
from onenet.training import validation
from onenet.training.validation import mean_losses

NAMES = ["val_total_loss", "val_loss_ce", "val_loss_giou", "val_loss_bbox"]


@pytest.fixture(scope="module")
def parts(shapes, tmp_path_factory):
    """A config, its model in training form, and its test set."""
    with unchanged_process():
        config = write_config(tmp_path_factory.mktemp("loss"), shapes)
        cfg = load_cfg(config, ["INPUT.MIN_SIZE_TEST", "32"])
        torch.manual_seed(0)
        model = build_detector(cfg, training=True).train()
        return cfg, model, CocoDetection(find_dataset(cfg.DATASETS.TEST[0]))


def test_the_mean_is_over_images_each_alone(parts):
    cfg, model, dataset = parts
    found = losses(cfg, model, dataset, progress=0.5)
    assert list(found) == NAMES == names_of_losses(cfg, model, dataset)
    assert found["val_total_loss"] == pytest.approx(sum(found[name] for name in NAMES[1:]))
    model.eval()
    expected = []
    with torch.no_grad():
        for (item,) in build_loss_loader(cfg, dataset):
            boxes = item.targets.boxes
            assert item.image.shape[-2:] == item.targets.image_size == (32, 32)
            original = dataset.record(len(expected)).boxes
            torch.testing.assert_close(boxes, torch.from_numpy(original / 2))
            predictions = model.predict([item.image])
            expected.append(model.criterion(predictions, [item.targets])["loss_giou"].item())
    assert found["val_loss_giou"] == pytest.approx(np.mean(expected))
    model.train()


def test_the_number_of_processes_does_not_matter(parts, monkeypatch):
    cfg, model, dataset = parts
    shares = []
    monkeypatch.setattr(validation, "gather", lambda share: shares.append(share) or [share])
    for rank, count in ((0, 1), (0, 4), (1, 4), (2, 4), (3, 4)):
        loader = build_loss_loader(cfg, dataset, rank=rank, world_size=count)
        found = mean_losses(
            model,
            (item for items in loader for item in items),
            lambda item: model([item.image], [item.targets]),
            progress=0.0,
        )
        expected = found if count == 1 else expected  # noqa: F821
    monkeypatch.setattr(validation, "gather", lambda _: [([], []), *shares[1:]])
    assert mean_losses(model, [], lambda _: {}, progress=0.0) == expected


def test_nothing_changes(parts):
    cfg, model, dataset = parts
    model.backbone.eval()  # as a user's hook may have it
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    losses(cfg, model, dataset, progress=0.5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()
    model.train()


def test_criteria_know_how_much_is_done_and_count_alone(parts, monkeypatch):
    cfg, model, dataset = parts
    seen = []
    monkeypatch.setattr(Criterion, "count", lambda self, *_: seen.append(self.progress) or 2)
    several = SimpleNamespace(is_available=lambda: True, is_initialized=lambda: True)
    monkeypatch.setattr("onenet.assignment.criterion.dist", several)
    losses(cfg, model, dataset, progress=0.75)  # without a word to other processes
    assert set(seen) == {0.75}
    with alone():
        assert mean_targets(3, torch.device("cpu")) == 3


def test_nan_and_no_images():
    model = torch.nn.Linear(1, 1)
    values = iter([1.0, float("inf"), float("-inf")])
    found = mean_losses(
        model, range(3), lambda _: {"loss_ce": torch.tensor(next(values))}, progress=0.0
    )
    assert list(found) == ["val_total_loss", "val_loss_ce"]
    assert np.isnan(found["val_total_loss"])
    assert mean_losses(model, [], lambda _: {}, progress=0.0) == {}


def test_a_run_logs_them_with_both_engines(engine, shapes, tmp_path):
    def no_objects(content: dict) -> None:
        content["annotations"] = []

    empty = edit_json(shapes, tmp_path / "empty", "val", no_objects)
    sets = [f"{p}/annotations/instances_val.json:{p}/val" for p in (shapes, empty)]
    config = write_config(
        tmp_path, shapes, TEST__LOSS=True, DATASETS__TEST=sets, SOLVER__MAX_ITER=1,
        INPUT__MIN_SIZE_TRAIN=[32], MODEL__OneNet__AUX__ENABLED=True,
    )  # fmt: skip
    engine(config)
    line = metrics(tmp_path / "run")[-1]
    prefix = f"{sets[0].replace('/', '_')}/"
    terms = [prefix + name for name in NAMES]
    aux = [f"{name}_aux" for name in terms[1:]]
    assert {name for name in line if "val_" in name.rpartition("/")[2]} == {*terms, *aux}
    assert line[terms[0]] == pytest.approx(sum(line[name] for name in (*terms[1:], *aux)))
    log = (tmp_path / "run" / "log.txt").read_text()
    assert f"{sets[0]}: val_total_loss {line[terms[0]]:.4f}  val_loss_ce " in log
    assert f"{sets[1]} has no objects, so TEST.LOSS has nothing to measure" in log


def test_both_engines_measure_the_same(shapes, tmp_path):
    pytest.importorskip("detectron2")
    from helpers.detectron2_runs import train_d2

    changes = {"TEST__LOSS": True, "SOLVER__MAX_ITER": 1, "SOLVER__BASE_LR": 1e-30}
    found = []
    for name, run in (("embedded", train), ("d2", train_d2)):
        config = write_config(tmp_path / name, shapes, **changes)
        if found:
            run(config, "MODEL.WEIGHTS", tmp_path / "embedded" / "run" / "model_final.pth")
        else:
            run(config)
        line = metrics(tmp_path / name / "run")[-1]
        found.append([line[name] for name in NAMES])
    # Batch norms have seen one more batch.
    assert found[0] == pytest.approx(found[1], rel=0.3)
