"""Where curves go: files, trackers, a logger of a user's own; and what happens when one fails."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.runs import refused, write_config

from onenet import LOGGER_REGISTRY, RunLogger
from onenet.errors import ConfigError
from onenet.training.loggers import Loggers, check_loggers
from onenet.training.run_logger import LoggedRun

NAN = float("nan")


def run_of(folder: Path, iteration: int = 0) -> LoggedRun:
    config = {"SOLVER.BASE_LR": 0.1, "SIZES": [[64.0, float("inf")]]}
    return LoggedRun(folder, "20260101-120000-abc123", iteration, config, "SOLVER: {}\n")


def opened(folder: Path, *names: str, iteration: int = 0) -> Loggers:
    cfg = SimpleNamespace(LOGGERS=names)
    check_loggers(cfg)
    return Loggers(cfg, run_of(folder, iteration))


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_table_grows_by_rows_and_columns(tmp_path):
    loggers = opened(tmp_path, "csv")
    loggers.log(2, {"loss": 0.5, "lr": 0.1})
    loggers.log(2, {"bbox/AP": 10.0, "bbox/AP-a,\nb": NAN})
    loggers.log(4, {"lr": 0.2, "loss": 0.25})
    loggers.close(finished=True)
    assert rows(tmp_path) == [
        {"iteration": "2", "loss": "0.5", "lr": "0.1", "bbox/AP": "", "bbox/AP-a,\nb": ""},
        {"iteration": "2", "loss": "", "lr": "", "bbox/AP": "10.0", "bbox/AP-a,\nb": ""},
        {"iteration": "4", "loss": "0.25", "lr": "0.2", "bbox/AP": "", "bbox/AP-a,\nb": ""},
    ]


def test_a_resumed_run_goes_on_with_its_table(tmp_path):
    loggers = opened(tmp_path, "csv")
    for iteration in (1, 2, 3):
        loggers.log(iteration, {"loss": float(iteration)})
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("4,4")  # half a row of a killed run
    again = opened(tmp_path, "csv", iteration=2)
    again.log(3, {"loss": 30.0, "lr": 0.1})
    assert [(row["iteration"], row["loss"]) for row in rows(tmp_path)] == [
        ("1", "1.0"),
        ("2", "2.0"),
        ("3", "30.0"),
    ]


class Broken(RunLogger):
    """Fails in some calls."""

    fails = True

    def log(self, iteration: int, values: dict[str, float]) -> None:
        if self.fails:
            raise RuntimeError("no route\nto host")


@pytest.fixture
def broken() -> Iterator[type[Broken]]:
    LOGGER_REGISTRY.register(Broken)
    yield Broken
    LOGGER_REGISTRY._obj_map.pop("Broken")


def test_one_that_fails_is_told_once_and_the_others_go_on(broken, tmp_path, caplog, monkeypatch):
    loggers = opened(tmp_path, "Broken", "csv", "csv")
    with caplog.at_level("INFO"):
        for iteration in (1, 2):
            loggers.log(iteration, {"loss": 1.0})
        monkeypatch.setattr(Broken, "fails", False)
        loggers.log(3, {"loss": 1.0})
    assert caplog.messages == [
        "LOGGERS: Broken fails: no route to host. Training goes on",
        "LOGGERS: Broken works again",
    ]
    assert len(rows(tmp_path)) == 3


def test_one_that_cannot_start_is_refused(tmp_path):
    (tmp_path / "metrics.csv").mkdir()
    with pytest.raises(ConfigError, match="LOGGERS: csv cannot start: Is a directory. Mend that"):
        opened(tmp_path, "csv")


def test_pictures_are_drawn_only_where_a_logger_takes_them(tmp_path):
    assert not opened(tmp_path).takes_pictures
    assert not opened(tmp_path, "csv").takes_pictures
    loggers = opened(tmp_path, "csv", "tensorboard")
    assert loggers.takes_pictures
    loggers.close(finished=True)


@pytest.mark.parametrize("content", ["a,b\n1,2\n", "iteration\nx\n", "iteration,a\n,1\n"])
def test_another_table_in_its_place_is_left_alone(tmp_path, content):
    (tmp_path / "metrics.csv").write_text(content)
    with pytest.raises(ConfigError, match="metrics.csv is not a table of a run: move it away"):
        opened(tmp_path, "csv")
    assert (tmp_path / "metrics.csv").read_text() == content


def test_a_run_logs_to_those_that_it_names(engine, broken, shapes, tmp_path):
    config = write_config(
        tmp_path, shapes, LOGGERS=["csv", "Broken"], SOLVER__MAX_ITER=1, INPUT__MIN_SIZE_TRAIN=[32]
    )
    engine(config)
    run = tmp_path / "run"
    assert (run / "model_final.pth").exists() and not list(run.glob("events.*"))
    found = {name for row in rows(run) for name, value in row.items() if value}
    assert {"iteration", "total_loss", "loss_ce", "lr", "bbox/AP-circle"} <= found
    log = (run / "log.txt").read_text()
    assert log.count("LOGGERS: Broken fails: no route to host. Training goes on") == 1


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ('["wandb"]', "error: LOGGERS has 'wandb', which needs the package wandb (import of wandb"),
        ('["cvs"]', "error: LOGGERS must be one of tensorboard, csv, wandb, mlflow, got 'cvs'"),
        ('[""]', "error: LOGGERS is ['']; expected a list of names"),
    ],
)
def test_what_is_not_there_is_refused_at_the_start(
    engine, shapes, tmp_path, monkeypatch, capsys, names, told
):
    monkeypatch.setitem(sys.modules, "wandb", None)
    error = refused(engine, capsys, write_config(tmp_path, shapes), "LOGGERS", names)
    assert error.startswith(told)
    assert "pip install 'onenet[wandb]'" in error or 'wandb"' not in names
    assert not (tmp_path / "run" / "config.yaml").exists()


# Experiment trackers, replaced by stand-ins that record the calls


class Noting:
    """Notes every call."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple, dict]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **options: self.calls.append((name, args, options))


@pytest.fixture
def wandb(monkeypatch) -> ModuleType:
    module = ModuleType("wandb")
    module.run = Noting()
    module.Image, module.Settings = SimpleNamespace, dict
    module.Image = lambda array: array.shape
    module.init = lambda **options: setattr(module, "options", options) or module.run
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_wandb_keeps_the_id_of_the_run(wandb, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    loggers = opened(tmp_path, "wandb", iteration=7)
    loggers.log(8, {"loss": 1.0})
    loggers.pictures(8, {"validation/1": np.zeros((4, 5, 3), np.uint8)})
    loggers.close(finished=False)
    options = wandb.options
    assert options["id"] == "20260101-120000-abc123" and options["resume"] == "allow"
    assert options["project"] == "onenet" and options["name"] == tmp_path.name
    assert options["config"]["SOLVER.BASE_LR"] == 0.1
    assert wandb.run.calls == [
        ("define_metric", ("iteration",), {}),
        ("define_metric", ("*",), {"step_metric": "iteration"}),
        ("log", ({"iteration": 8, "loss": 1.0},), {}),
        ("log", ({"iteration": 8, "validation/1": (4, 5, 3)},), {}),
        ("finish", (), {"exit_code": 1}),
    ]


def test_wandb_without_a_key_is_refused(wandb, tmp_path):
    def init(**_: Any) -> None:
        raise RuntimeError("api_key not configured (no-tty)")

    wandb.init = init
    with pytest.raises(ConfigError, match="LOGGERS: wandb cannot start: api_key not configured"):
        opened(tmp_path, "wandb")


class Client(Noting):
    """Of MLflow, with a run that is there or not."""

    known: list[Any] = []

    def get_experiment_by_name(self, name: str) -> None:
        assert name == "onenet"

    def create_experiment(self, name: str) -> str:
        return "5"

    def search_runs(self, places: list[str], words: str, max_results: int) -> list[Any]:
        assert places == ["5"]
        assert words == "tags.`onenet_run` = '20260101-120000-abc123'"
        return self.known

    def create_run(self, place: str, **options: Any) -> Any:
        assert options["tags"] == {"onenet_run": "20260101-120000-abc123"}
        return SimpleNamespace(info=SimpleNamespace(run_id="new"))


@pytest.mark.parametrize("known", [False, True])
def test_mlflow_finds_the_run_by_its_tag(tmp_path, monkeypatch, known):
    client = Client()
    client.known = [SimpleNamespace(info=SimpleNamespace(run_id="old"))] if known else []
    module, entities = ModuleType("mlflow"), ModuleType("mlflow.entities")
    module.MlflowClient = lambda: client
    entities.Metric = lambda name, value, now, step: (name, value, step)
    entities.Param = lambda name, value: (name, value)
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    for name in ("MLFLOW_EXPERIMENT_NAME", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    loggers = opened(tmp_path, "mlflow")
    loggers.log(3, {"bbox/AP-cat (id 7)": 1.0, "bbox/APl": NAN})
    loggers.pictures(3, {"validation/1": np.zeros((4, 5, 3), np.uint8)})
    loggers.close(finished=True)
    one = "old" if known else "new"
    names = [name for name, _, _ in client.calls]
    begin = ["update_run"] if known else ["log_batch"]
    assert names == [*begin, "log_text", "log_batch", "log_image", "set_terminated"]
    if not known:
        parameters = [("SOLVER.BASE_LR", "0.1"), ("SIZES", "[[64.0, inf]]")]
        assert client.calls[0][1:] == (("new",), {"params": parameters})
    metrics = [("bbox/AP-cat _id 7_", 1.0, 3)]
    assert client.calls[2][1:] == ((one,), {"metrics": metrics})
    assert client.calls[-1][1] == (one, "FINISHED")


# The packages themselves, without a network


def test_wandb_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for iteration in (0, 2):
        loggers = opened(tmp_path, "wandb", iteration=iteration)
        loggers.log(iteration + 2, {"loss": 1.0, "bbox/APl": NAN})
        loggers.pictures(iteration + 2, {"validation/1": np.zeros((4, 5, 3), np.uint8)})
        loggers.close(finished=True)
    folders = list((tmp_path / "wandb").glob("offline-run-*-20260101-120000-abc123"))
    files = [file for folder in folders for file in folder.glob("*.wandb")]
    assert files and all(file.stat().st_size for file in files)


def test_mlflow_with_a_database_of_its_own(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)  # artifacts lie beside
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    for iteration in (0, 2):
        loggers = opened(tmp_path, "mlflow", iteration=iteration)
        loggers.log(iteration + 2, {"bbox/AP-cat (id 7)": 1.0 + iteration, "bbox/APl": NAN})
        loggers.pictures(iteration + 2, {"validation/1": np.zeros((4, 5, 3), np.uint8)})
        loggers.close(finished=True)
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("onenet").experiment_id])
    history = client.get_metric_history(run.info.run_id, "bbox/AP-cat _id 7_")
    assert [(point.step, point.value) for point in history] == [(2, 1.0), (4, 3.0)]
    assert run.data.params["SOLVER.BASE_LR"] == "0.1" and run.info.status == "FINISHED"
