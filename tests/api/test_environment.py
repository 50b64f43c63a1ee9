"""``onenet env``: what a bug report needs, whatever is missing or broken, and no secrets."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.project import ROOT

import onenet
from onenet.api import environment
from onenet.config import machine


def report() -> dict[str, dict[str, str]]:
    """The facts by section and name."""
    sections: dict[str, dict[str, str]] = {}
    for line in environment.describe():
        if not line.startswith("  "):
            facts = sections[line] = {}
        else:
            name, _, value = line.strip().partition("  ")
            facts[name] = value.strip()
    return sections


def test_what_it_tells(capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    environment.main([])
    told = capsys.readouterr().out
    assert "failed:" not in told
    found = report()
    assert list(found) == list(environment.SECTIONS)
    assert found["OneNet"]["onenet"].startswith(onenet.__version__)
    assert found["Packages"]["torch"] == torch.__version__.partition("+")[0]
    assert found["Engines"]["lightning"] == "can be used"
    assert found["Environment variables"]["OMP_NUM_THREADS"] == "3"
    assert found["Memory"]["shared memory"] and found["Processor"]["torch uses"]


def test_it_prints_no_secrets(monkeypatch, capsys):
    monkeypatch.setenv("GITHUB_TOKEN", "s3cret")
    monkeypatch.setenv("https_proxy", "http://me:s3cret@proxy:3128")
    monkeypatch.setenv("TORCH_HOME", str(Path.home() / "caches"))
    environment.main([])
    told = capsys.readouterr().out
    assert "s3cret" not in told and "http://proxy:3128" in told
    assert f"~{os.sep}caches" in told and str(Path.home() / "caches") not in told


@pytest.mark.parametrize("error", [ImportError("no such thing"), OSError("undefined symbol: x")])
def test_a_broken_package_is_told_and_the_rest_goes_on(monkeypatch, error):
    imported = importlib.import_module

    def break_some(name, *args):
        if name in ("torch", "onnxruntime", "onenet.lightning.main"):
            raise error
        return imported(name, *args)

    monkeypatch.setattr(importlib, "import_module", break_some)
    found = report()
    failed = f"{type(error).__name__}: {error}"
    assert found["Engines"]["lightning"] == f"cannot be used: {failed}"
    assert found["Engines"]["onnxruntime"] == f"cannot be used: {failed}"
    assert f"failed: {failed}" in found["GPUs"] and "nvidia-smi" in found["GPUs"]
    assert found["Processor"]["name"] and "temporary" in found["Folders"]


def test_it_needs_none_of_the_packages_that_it_asks_for():
    missing = ("torch", "torchvision", "lightning", "numpy", "cv2", "matplotlib", "onnxruntime")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({missing}))\n"
        "from onenet.api.environment import main; main([])"
    )
    path = {**os.environ, "PYTHONPATH": str(ROOT / "projects" / "OneNet")}
    done = subprocess.run([sys.executable, "-c", code], env=path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "auto takes" in done.stdout and "cannot be used: ModuleNotFoundError" in done.stdout


def test_gpus_are_named(monkeypatch):
    card = SimpleNamespace(name="H100", total_memory=80 << 30, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: card)
    monkeypatch.setattr(environment, "_output", lambda *command: "0, H100, 580.1, 81559 MiB")
    facts = dict(environment._gpus())
    assert facts["nvidia-smi"] == "0, H100, 580.1, 81559 MiB"
    assert facts["cuda:0"] == "H100, 80.0 GiB, compute 9.0"


@pytest.mark.parametrize(
    ("flags", "has", "lacks"),
    [
        (["fpu", "avx2", "avx512f"], "AVX2, AVX-512", "AVX512-BF16, AVX512-VNNI"),
        (["fp", "asimd", "bf16"], "NEON, bf16", "dot product, i8mm, SVE"),
        (None, "unknown: this system does not list it", None),
    ],
)
def test_abilities_of_processors(monkeypatch, flags, has, lacks):
    monkeypatch.setattr(machine, "cpu_flags", lambda: flags)
    facts = dict(environment._processor())
    assert facts["has"] == has and facts.get("lacks", "").startswith(lacks or "")


def test_limits_of_a_container(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path)
    assert machine.core_limit() is None and machine.memory_limit() is None
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "memory.max").write_text(f"{4 << 30}\n")
    assert machine.core_limit() == 1.5 and machine.memory_limit() == 4 << 30
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.core_limit() is None and machine.memory_limit() is None


def test_limits_of_a_container_of_version_1(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path)
    for name in ("cpu", "memory"):
        (tmp_path / name).mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("50000")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000")
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text(str(1 << 30))
    assert machine.core_limit() == 0.5 and machine.memory_limit() == 1 << 30
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1")
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text(str((1 << 63) - 4096))
    assert machine.core_limit() is None and machine.memory_limit() is None
