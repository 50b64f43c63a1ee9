"""The device of a config; bfloat16 where the processor has no units for it; Apple's GPUs."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.configs import R50, refused
from helpers.project import ROOT
from helpers.runs import train, trained, write_config
from torch.utils._python_dispatch import TorchDispatchMode

from onenet.cli import training_parser
from onenet.config import device as devices
from onenet.config.rules import warn_of_idle_steps
from onenet.errors import ConfigError
from onenet.lightning.build import build_detector
from onenet.lightning.config import load_cfg
from onenet.lightning.launch import check_processes
from onenet.lightning.predictor import build_predictor
from onenet.structures import Targets


def config(device: str, **others: Any) -> SimpleNamespace:
    return SimpleNamespace(MODEL=SimpleNamespace(DEVICE=device), **others)


@pytest.mark.parametrize(
    ("wanted", "cuda", "mps", "chosen", "told"),
    [
        ("mps", False, True, "mps", "Operators that MPS lacks run on the CPU, and torch names"),
        ("mps", True, False, "cpu", "MODEL.DEVICE is mps, but there is no MPS: running on the CPU"),
        ("cuda", False, True, "cpu", "no CUDA: running on the CPU; MODEL.DEVICE mps takes the Mac"),
        ("cuda:1", True, False, "cuda:1", ""),
        ("cpu", True, True, "cpu", ""),
    ],
)
def test_the_device_or_the_cpu_with_a_word(monkeypatch, caplog, wanted, cuda, mps, chosen, told):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setenv(devices.FALLBACK, "1")
    assert str(devices.choose_device(config(wanted))) == chosen
    assert told in caplog.text if told else not caplog.text


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--num-gpus", "2"], "--num-gpus 2: MODEL.DEVICE mps is one GPU"),
        (["SOLVER.AMP.ENABLED", "True"], "SOLVER.AMP.ENABLED is True; expected False, as MODEL"),
    ],
)
def test_what_mps_cannot_do_is_refused(monkeypatch, words, told):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    args = training_parser().parse_args(["--config-file", str(R50), *words])
    cfg = load_cfg(R50, ["MODEL.DEVICE", "mps", *args.opts])
    with pytest.raises(ConfigError, match=told):
        check_processes(cfg, args)


def test_other_devices_are_refused():
    assert "expected 'cpu', 'cuda', 'cuda:N' or 'mps'" in refused(R50, "MODEL.DEVICE", "mps:0")


@pytest.mark.parametrize(
    ("system", "first", "value"),
    [("darwin", "", "1"), ("linux", "", None), ("darwin", "torch", None)],
)
def test_torch_reads_that_operators_fall_back(system, first, value):
    """Only on a Mac, and only if torch is not there yet."""
    script = f"""
import os, sys, types
sys.platform = {system!r}
if {first!r}:
    sys.modules[{first!r}] = types.ModuleType({first!r})
import onenet
assert {first!r} or "torch" not in sys.modules
print(os.environ.get({devices.FALLBACK!r}))
"""
    path = {"PYTHONPATH": str(ROOT / "projects" / "OneNet")}
    done = subprocess.run([sys.executable, "-c", script], env=path, capture_output=True, text=True)
    assert done.stdout.strip() == str(value), done.stderr


class Only32Bits(TorchDispatchMode):
    """Fails at every tensor of 64-bit floats, which MPS does not have."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else [out]:
            double = isinstance(value, torch.Tensor) and value.dtype == torch.float64
            assert not double, f"{function} gives float64"
        return out


def test_the_model_computes_without_64_bits(shapes, tmp_path):
    cfg = load_cfg(write_config(tmp_path, shapes))
    model = build_detector(cfg)
    image = torch.randint(256, (3, 64, 64), dtype=torch.uint8)
    targets = Targets(torch.tensor([[4.0, 4, 30, 40]]), torch.tensor([1]), (64, 64))
    with Only32Bits():
        sum(model([image], [targets]).values()).backward()
        model.eval()([image])


# bfloat16


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16", True),
        ("processor : 0\nflags : fpu amx_bf16 amx_tile\n", True),
        ("flags\t\t: fpu avx2 avx512f", False),
        ("Features\t: fp asimd bf16", True),
        ("Features\t: fp asimd", False),
        ("cpu : POWER9", None),
        (None, None),
    ],
)
def test_what_linux_says_of_the_processor(monkeypatch, text, expected):
    def read(_: Path, encoding: str) -> str:
        if text is None:
            raise FileNotFoundError
        return text

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(Path, "read_text", read)
    assert devices.has_bfloat16() is expected


@pytest.mark.parametrize(
    ("machine", "answer", "expected"),
    [("x86_64", "", False), ("arm64", "1\n", True), ("arm64", "0\n", False), ("arm64", "", None)],
)
def test_what_macos_says_of_the_processor(monkeypatch, machine, answer, expected):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr("platform.machine", lambda: machine)
    run = lambda *_, **__: SimpleNamespace(stdout=answer)  # noqa: E731
    monkeypatch.setattr(subprocess, "run", run)
    assert devices.has_bfloat16() is expected


@pytest.fixture
def slow(monkeypatch) -> None:
    """A processor without bfloat16, and nothing said of it yet."""
    monkeypatch.setattr(devices, "has_bfloat16", lambda: False)
    devices._warn_of_bfloat16.cache_clear()


@pytest.mark.usefixtures("slow")
def test_slow_bfloat16_is_told_once(caplog, monkeypatch):
    devices.warn_of_bfloat16(torch.device("cuda"), "A")
    assert not caplog.messages
    for key in ("A", "A", "B"):
        devices.warn_of_bfloat16(torch.device("cpu"), key)
    assert len(caplog.messages) == 2 and "A is faster here" in caplog.messages[0]
    devices._warn_of_bfloat16.cache_clear()
    for answer in (True, None):
        monkeypatch.setattr(devices, "has_bfloat16", lambda answer=answer: answer)
        devices.warn_of_bfloat16(torch.device("cpu"), "A")
    assert len(caplog.messages) == 2


@pytest.mark.usefixtures("slow")
def test_training_and_evaluation_in_bfloat16_name_the_key(shapes, tmp_path, capsys):
    config, _ = trained(tmp_path, shapes, SOLVER__MAX_ITER=1, SOLVER__STEPS=[])
    train(config, "SOLVER.AMP.ENABLED", True, "DATASETS.TEST", "()")
    assert capsys.readouterr().out.count("SOLVER.AMP.ENABLED False is faster here") == 1
    train(config, "--eval-only", "TEST.PRECISION", "bfloat16")
    assert capsys.readouterr().out.count("TEST.PRECISION float32 is faster here") == 1


@pytest.mark.usefixtures("slow")
def test_the_demos_model_in_bfloat16_names_the_key(shapes, tmp_path, caplog):
    config, _ = trained(tmp_path, shapes)
    build_predictor(str(config), ["TEST.PRECISION", "bfloat16"])
    assert "TEST.PRECISION float32 is faster here" in caplog.text


# The learning rate


@pytest.mark.parametrize(
    ("opts", "told"),
    [
        (["SOLVER.STEPS", "(60,80)"], ""),
        (["SOLVER.STEPS", "()"], ""),
        (["SOLVER.STEPS", "(100,200)"], "never lowers the learning rate (100, 200)"),
        (["SOLVER.STEPS", "(60,90000)"], "skips these (90000)"),
        (["SOLVER.STEPS", "(100,)", "SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR"], ""),
    ],
)
def test_steps_that_training_does_not_reach(caplog, opts, told):
    warn_of_idle_steps(load_cfg(R50, ["SOLVER.MAX_ITER", "90", *opts]))
    if not told:
        assert not caplog.messages
        return
    (line,) = caplog.messages
    assert line.startswith(f"SOLVER.STEPS {opts[1].replace(',', ', ').replace(', )', ',)')}: ")
    assert f"training ends at SOLVER.MAX_ITER 90 and {told}" in line
    assert line.endswith("SOLVER.STEPS '(60, 80)'")


def test_training_names_steps_that_it_does_not_reach(shapes, tmp_path, capsys):
    config = write_config(tmp_path, shapes, SOLVER__MAX_ITER=1, DATASETS__TEST=[])
    train(config, "SOLVER.STEPS", "(5,)")
    log = capsys.readouterr().out
    assert log.count("never lowers the learning rate (5)") == 1
    assert "SOLVER.STEPS (5,)" in (tmp_path / "run" / "log.txt").read_text()


def test_a_short_training_gets_steps_that_can_be_set(caplog):
    warn_of_idle_steps(load_cfg(R50, ["SOLVER.MAX_ITER", "2"]))
    assert caplog.messages[0].endswith("SOLVER.STEPS '(1,)'")
