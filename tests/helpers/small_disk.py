"""Trainings on a disk of 210 MB, full and read-only, for a test; prints what became of each."""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from helpers.runs import train
from onenet.lightning.trainer import Trainer

CONFIG, DISK = map(Path, sys.argv[1:])
_NEW_USER, _NEW_MOUNTS = 0x10000000, 0x00020000  # CLONE_NEWUSER and CLONE_NEWNS


def mount_disk() -> None:
    """In a namespace of its own, as ``unshare --user --map-root-user --mount`` makes one."""
    ids = {"uid": os.getuid(), "gid": os.getgid()}
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEW_USER | _NEW_MOUNTS):
        raise OSError(ctypes.get_errno(), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    for kind, number in ids.items():
        Path(f"/proc/self/{kind}_map").write_text(f"0 {number} 1")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=210m", "tmpfs", DISK], check=True)


def outcome(folder: Path, *words: Any) -> dict[str, Any]:
    """Exit status, output and checkpoints of a training."""
    status = 0
    with (
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        try:
            train(CONFIG, *words, "OUTPUT_DIR", folder)
        except SystemExit as stop:
            status = stop.code
    files = sorted(path.name for path in folder.glob("*.pth"))
    return {"status": status, "out": out.getvalue(), "err": err.getvalue(), "files": files}


def make_read_only(folder: Path) -> None:
    """From now on; files that are open stay open."""
    for options in (["--bind"], ["-o", "remount,ro,bind"]):
        subprocess.run(["mount", *options, folder, folder], check=True)


step = Trainer.step


def step_then_read_only(self: Trainer, batch: Any) -> Any:
    if self.iteration == 1:
        make_read_only(self.output_dir)
    return step(self, batch)


mount_disk()
full = outcome(DISK / "full", "SOLVER.MAX_ITER", 4)
(DISK / "full" / "model_0000000.pth").unlink()
resumed = outcome(DISK / "full", "--resume", "SOLVER.MAX_ITER", 4, "SOLVER.CHECKPOINT_KEEP", 1)
for path in (DISK / "full").iterdir():
    path.unlink()
Trainer.step = step_then_read_only
read_only = outcome(DISK / "ro", "SOLVER.MAX_ITER", 2)
Trainer.step = step
never = outcome(DISK / "ro", "--resume", "SOLVER.MAX_ITER", 2)
print(json.dumps([full, resumed, read_only, never]))
