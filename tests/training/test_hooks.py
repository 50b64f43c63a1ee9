"""Hooks of a user's own, with both engines; the first is that of docs/hooks.md."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.project import ROOT
from helpers.runs import load, train, write_config

from onenet import HOOK_REGISTRY, Hook
from onenet.training.hooks import HookStates

Run = Callable[..., Any]
SHORT = {"SOLVER__MAX_ITER": 3, "SOLVER__CHECKPOINT_PERIOD": 1, "DATASETS__TEST": []}


@pytest.fixture(params=["lightning", "detectron2"])
def run(request) -> Run:
    """Trains with an engine in this process."""
    if request.param == "lightning":
        return train
    pytest.importorskip("detectron2")
    from helpers.detectron2_runs import train_d2

    return train_d2


@pytest.fixture
def head_first(tmp_path, monkeypatch) -> Iterator[Path]:
    """The file of docs/hooks.md; it is forgotten after the test."""
    monkeypatch.setattr(sys, "path", sys.path[:])
    text = (ROOT / "docs" / "hooks.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(code.splitlines()) <= 20
    file = tmp_path / "head_first.py"
    file.write_text(code, encoding="utf-8")
    yield file
    sys.modules.pop("head_first", None)
    HOOK_REGISTRY._obj_map.pop("HeadFirst", None)


def test_the_hook_of_the_docs_trains_the_head_first(run, head_first, shapes, tmp_path):
    config = write_config(tmp_path, shapes, SOLVER__WARMUP_ITERS=2, **SHORT)
    run(config, "--import", head_first, "HOOKS", '["HeadFirst"]')
    states = [load(tmp_path / "run" / f"model_000000{i}.pth")["model"] for i in range(3)]
    for name, moves in (
        ("backbone.res5.1.conv2.weight", [False, True]),
        ("head.feat1.weight", [True, True]),
    ):
        weights = [state[name] for state in states]
        pairs = zip(weights, weights[1:], strict=False)
        assert [not torch.equal(a, b) for a, b in pairs] == moves, name


class Noting(Hook):
    """Notes when it is called, and counts steps over interruptions."""

    calls: list[tuple[str, int]]
    found_result: list[bool]

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.steps = 0

    def note(self, name: str) -> None:
        self.calls.append((name, self.trainer.iteration))

    def before_train(self) -> None:
        self.note("before_train")

    def before_step(self) -> None:
        self.note("before_step")

    def after_step(self) -> None:
        self.steps += 1
        self.note("after_step")
        assert self.trainer.values["loss_ce"] > 0
        assert self.trainer.values["gradient norm"] > 0
        assert not hasattr(self.trainer.model, "module") and self.trainer.cfg is self.cfg

    def at_end(self) -> None:
        self.note("at_end")
        self.found_result.append((Path(self.cfg.OUTPUT_DIR) / "model_final.pth").exists())

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.steps = state["steps"]


class Stopping(Hook):
    """Sends SIGTERM within the second iteration."""

    def before_step(self) -> None:
        if self.trainer.iteration == 1:
            signal.raise_signal(signal.SIGTERM)


@pytest.fixture
def noting() -> Iterator[list[tuple[str, int]]]:
    """Registers the hooks above; gives the calls that are noted."""
    Noting.calls, Noting.found_result = [], []
    for hook in (Noting, Stopping):
        HOOK_REGISTRY.register(hook)
    yield Noting.calls
    for hook in (Noting, Stopping):
        HOOK_REGISTRY._obj_map.pop(hook.__name__)


def test_hooks_are_called_around_every_step_and_go_on_when_resumed(run, noting, shapes, tmp_path):
    config = write_config(tmp_path, shapes, HOOKS=["Noting"], **SHORT)
    with pytest.raises(SystemExit) as stop:
        run(config, "HOOKS", '["Noting", "Stopping"]')
    assert stop.value.code == 143
    assert noting == [
        ("before_train", 0),
        ("before_step", 0),
        ("after_step", 1),
        ("before_step", 1),
        ("after_step", 2),
    ]
    noting.clear()
    run(config, "--resume")
    assert noting == [("before_train", 2), ("before_step", 2), ("after_step", 3), ("at_end", 3)]
    assert Noting.found_result == [False]  # a hook may still change what is saved
    states = (load(tmp_path / "run" / f"model_000000{i}.pth") for i in (0, 1, 2))
    saved = [state.get("hooks") or state["trainer"]["hooks"]["CoreHooks"] for state in states]
    assert saved == [{"Noting": {"steps": number}} for number in (1, 2, 3)]
    noting.clear()
    run(config, "--resume")  # of a run that is done
    assert noting == [("before_train", 3), ("at_end", 3)]


def test_an_unknown_hook_is_refused_with_the_choices(run, noting, shapes, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        run(write_config(tmp_path, shapes, **SHORT), "HOOKS", '["Notng"]')
    assert stop.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == (
        "error: HOOKS must be one of Noting, Stopping, got 'Notng'; did you mean 'Noting'?"
    )


def test_names_without_a_file_that_registers_them(run, shapes, tmp_path, capsys):
    for value, told in (
        ('["Mine"]', "HOOKS is ['Mine'], but no hook is registered: give the file"),
        ("[1]", "HOOKS is [1]; expected a list of names"),
    ):
        with pytest.raises(SystemExit) as stop:
            run(write_config(tmp_path, shapes, **SHORT), "HOOKS", value)
        assert stop.value.code == 2
        assert told in capsys.readouterr().err.splitlines()[-1]


def test_a_state_without_its_hook_is_told(caplog):
    HookStates({}).load_state_dict({"Noting": {"steps": 3}})
    told = "The checkpoint's state of the hook Noting is unused: add it to HOOKS"
    assert caplog.messages == [told]
    assert HookStates({"a": Hook(None)}).state_dict() == {}
