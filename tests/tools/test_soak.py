"""tools/dev/soak.py reads correctly what processes hold, and finds what grows."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import threading
from types import ModuleType

import pytest
from helpers.project import load_script

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@pytest.fixture(scope="module")
def soak(tools) -> ModuleType:
    return load_script("tools/dev/soak.py")


def test_a_reading_counts_memory_files_and_threads_of_all_processes(soak, tmp_path):
    before = soak.take_reading(os.getpid(), 1)
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    # A mapping of its own: the allocator may reuse what earlier tests freed, and nothing grows.
    block = mmap.mmap(-1, 2**25)
    block.write(b"x" * 2**25)
    with (tmp_path / "file").open("w"), subprocess.Popen(["sleep", "60"], close_fds=False) as child:
        after = soak.take_reading(os.getpid(), 2)
        child.kill()
    end.set()
    thread.join()
    assert after.iteration == 2 and len(block) == 2**25
    assert after.files >= before.files + 1 + 3 and after.threads == before.threads + 2
    assert after.memory - before.memory == pytest.approx(32, abs=4)
    assert 0 < after.worker_memory - before.worker_memory < 20


def readings(soak, **slopes: float) -> list:
    """Readings of 2,000 iterations with occasional peaks; slopes per iteration, by name."""
    first = {"memory": 900.0, "worker_memory": 700.0, "files": 55, "threads": 11}
    return [
        soak.Reading(i, **{k: v + slopes.get(k, 0) * i + (i % 400 == 0) for k, v in first.items()})
        for i in range(50, 2001, 50)
    ]


def test_growth_is_that_of_1000_iterations_after_the_first_ones(soak):
    found = soak.growth(readings(soak, memory=0.01, files=0.004), settle=500)
    assert found == pytest.approx(
        {"memory": 10, "worker_memory": 0, "files": 4, "threads": 0}, abs=1e-9
    )
    assert [name for name in found if found[name] > soak.LIMITS[name]] == ["memory", "files"]


def test_a_run_that_is_too_short_is_refused(soak):
    with pytest.raises(soak.SoakError, match="5 readings after iteration 1750"):
        soak.growth(readings(soak), settle=1750)


def test_only_lines_of_losses_count(soak, tmp_path):
    file = tmp_path / "metrics.json"
    assert soak._logged(file) == 0
    file.write_text('{"iteration": 20, "total_loss": 1}\n{"iteration": 25, "bbox/AP": 1}\n{"iter')
    assert soak._logged(file) == 20


@pytest.mark.parametrize(("grows", "status"), [(0.0, 0), (0.01, 1)])
def test_the_verdict_and_its_files(soak, tmp_path, monkeypatch, capsys, grows, status):
    monkeypatch.setattr(soak, "train", lambda *_: readings(soak, threads=grows))
    with pytest.raises(SystemExit) as stop:
        soak.main(["--output", str(tmp_path / "out")])
    assert stop.value.code == status
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.endswith(": flat")]
    assert lines == ["threads: +10.000 in 1,000 iterations (limit 0.1): GROWS"] * status
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"soak.json", "soak.png"}
