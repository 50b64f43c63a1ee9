"""Processes that load data end with the one that they load for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from onenet.training.signals import SIGNALS

LOADS = """
import multiprocessing, os, time
from torch.utils.data import DataLoader, get_worker_info
from onenet.training.workers import init_worker

class Pids:
    def __len__(self):
        return 4
    def __getitem__(self, index):
        return os.getpid()

if __name__ == "__main__":
    multiprocessing.set_forkserver_preload(["torch.utils.data"])
    loader = DataLoader(
        Pids(), num_workers=2, multiprocessing_context="{start}", persistent_workers=True,
        worker_init_fn=init_worker,
    )
    print(*{{int(pid) for pid in loader}}, flush=True)
    input()
    for process in multiprocessing.active_children():
        process.terminate()
    time.sleep(60)
"""


def is_running(pid: int) -> bool:
    """Not even as one that has ended and was not waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="Linux only")
@pytest.mark.parametrize(
    ("start", "by"), [("forkserver", "kill -9"), ("fork", "kill -9"), ("forkserver", "the first")]
)
def test_they_end_with_the_first_or_by_it_alone(tmp_path, start, by):
    script = tmp_path / "loads.py"
    script.write_text(LOADS.format(start=start))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    program = subprocess.Popen([sys.executable, script], text=True, **pipes)
    workers = [int(pid) for pid in program.stdout.readline().split()]
    try:
        assert len(workers) == 2 and all(map(is_running, workers))
        for number in SIGNALS:  # of a terminal, and of a scheduler, to all
            for pid in workers:
                os.kill(pid, number)
        time.sleep(0.2)
        assert all(map(is_running, workers))
        if by == "kill -9":
            program.kill()
            program.wait()
        else:
            print(file=program.stdin, flush=True)
        deadline = time.monotonic() + 30
        while any(map(is_running, workers)):
            assert time.monotonic() < deadline, "they still run"
            time.sleep(0.05)
    finally:
        program.kill()
        for pid in filter(is_running, workers):
            os.kill(pid, signal.SIGKILL)
