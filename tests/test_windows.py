"""What Windows lacks or does otherwise, simulated: nothing here runs on Windows itself."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.project import ROOT, load_script
from helpers.runs import TRAIN_NET, write_config

from onenet.data.sources import find_dataset
from onenet.errors import DatasetError
from onenet.evaluation.results import results_folder

FILES = sorted(
    path for folder in ("projects", "demo", "tools") for path in (ROOT / folder).rglob("*.py")
)
# Where a program of Linux alone is meant, or the code asks first whether the name is there.
MAY = {
    "tools/_shared/training_runs.py": {"os.killpg", "signal.SIGKILL", "fcntl"},
    "tools/dev/soak.py": {"os.sysconf"},
    "tools/dev/gpu_check.py": {"os.killpg", "signal.SIGKILL"},
    "projects/OneNet/onenet/config/machine.py": {"os.sysconf", "os.sched_getaffinity"},
    "projects/OneNet/onenet/data/shared_memory.py": {"os.statvfs"},
    "projects/OneNet/onenet/training/signals.py": {"signal.pthread_sigmask", "signal.sigwaitinfo"},
    "projects/OneNet/onenet/training/workers.py": {"signal.SIGCHLD"},
}
OS = (
    "fork forkpty getgid getuid geteuid getpgid killpg setsid getloadavg mkfifo sysconf statvfs "
    "sched_getaffinity posix_fadvise O_DIRECTORY O_NOFOLLOW"
)
SIGNAL = (
    "SIGHUP SIGKILL SIGUSR1 SIGUSR2 SIGALRM SIGCHLD SIGSTOP SIGCONT SIGPIPE pthread_sigmask "
    "sigwaitinfo sigwait alarm setitimer"
)
LACKING = {f"os.{name}" for name in OS.split()} | {f"signal.{name}" for name in SIGNAL.split()}
LACKING |= {"fcntl", "resource", "pwd", "grp", "termios"}


def used(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield f"{node.value.id}.{node.attr}"
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def in_the_locales_encoding(tree: ast.Module) -> Iterator[int]:
    """Lines that read or write text in the encoding of the machine, on Windows cp1252."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or any(k.arg == "encoding" for k in node.keywords):
            continue
        called = node.func
        if isinstance(called, ast.Name) and called.id == "open":
            modes = node.args[1:2]
        elif isinstance(called, ast.Attribute) and called.attr == "open":
            if isinstance(called.value, ast.Name) and called.value.id in ("Image", "os", "opener"):
                continue
            modes = node.args[:2]  # of a Path, or of a module that opens paths
        elif isinstance(called, ast.Attribute) and called.attr in ("read_text", "write_text"):
            modes = []
        else:
            continue
        modes = [mode.value for mode in modes if isinstance(mode, ast.Constant)]
        if not (modes and "b" in modes[0]):
            yield node.lineno


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_a_program_uses_nothing_that_windows_lacks(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    allowed = MAY.get(file.relative_to(ROOT).as_posix(), set())
    assert set(used(tree)) & LACKING <= allowed
    assert not list(in_the_locales_encoding(tree))


# Takes from Python what Windows lacks, before a program starts.
AS_ON_WINDOWS = f"""
import builtins, os, runpy, signal, subprocess, sys, types
sys.modules["msvcrt"] = types.SimpleNamespace(LK_NBLCK=2, locking=lambda *_: None)
for name in {OS!r}.split():
    if hasattr(os, name): delattr(os, name)
for name in {SIGNAL!r}.split():
    if hasattr(signal, name): delattr(signal, name)
sys.modules.update(dict.fromkeys(("fcntl", "resource", "pwd", "grp", "termios")))
opened = os.open
def open_file(path, *args, **options):
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", str(path))
    return opened(path, *args, **options)
os.open = open_file
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def as_on_windows(*words: object) -> subprocess.CompletedProcess[str]:
    """Run a program; its standard output is cp1252."""
    path = os.pathsep.join(filter(None, ("projects/OneNet", os.getenv("PYTHONPATH"))))
    return subprocess.run(
        [sys.executable, "-c", AS_ON_WINDOWS, *map(str, words)],
        env={**os.environ, "PYTHONPATH": path, "PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"},
        cwd=ROOT, capture_output=True, text=True, encoding="cp1252", timeout=300,
    )  # fmt: skip


@pytest.mark.slow
def test_a_training_with_what_windows_has(shapes, tmp_path):
    config = write_config(tmp_path, shapes, SOLVER__MAX_ITER=2)
    done = as_on_windows(TRAIN_NET, "--engine", "lightning", "--config-file", config)
    assert done.returncode == 0, done.stderr
    assert {"model_final.pth", "last_checkpoint", "log.txt"} <= set(os.listdir(tmp_path / "run"))
    assert not list((tmp_path / "run").rglob("*.partial"))


@pytest.mark.slow
def test_a_console_that_lacks_letters(shapes, tmp_path):
    names = "\n".join(["K\u00e4fer", "\u732b", "\u03b1", "d", "e", "f"])
    truth = (shapes / "annotations" / "instances_val.json").read_text(encoding="utf-8")
    for old, new in zip(("circle", "square"), names.split(), strict=False):
        truth = truth.replace(f'"{old}"', f'"{new}"')
    assert "\u732b" in truth
    (tmp_path / "val.json").write_text(truth, encoding="utf-8")
    name = f"{tmp_path / 'val.json'}:{shapes / 'val'}"
    done = as_on_windows("tools/describe_dataset.py", name, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "K\u00e4fer" in done.stdout and r"\u732b" in done.stdout
    written = (tmp_path / "out" / "description.json").read_text(encoding="utf-8")
    assert "K\u00e4fer" in written and "\u732b" in written


@pytest.mark.parametrize(
    ("name", "json_file", "folder"),
    [
        ("C:\\data\\train.json:D:\\images", "C:\\data\\train.json", "D:\\images"),
        ("C:/data/train.JSON:images", "C:/data/train.JSON", "images"),
        ("train.json:C:/images", "train.json", "C:/images"),
        ("\\\\host\\share\\a.json:\\\\host\\share\\b", "\\\\host\\share\\a.json", None),
    ],
)
def test_data_sets_on_drives(monkeypatch, name, json_file, folder):
    monkeypatch.setattr(os.path, "isfile", lambda path: True)
    monkeypatch.setattr(os.path, "isdir", lambda path: True)
    source = find_dataset(name)
    assert str(source.json_file) == json_file
    assert str(source.image_root) == folder or folder is None


def test_a_path_whose_backslash_became_a_tab():
    """As ``DATASETS.TRAIN`` gets it from a path in quotes with single backslashes."""
    with pytest.raises(DatasetError, match="control character: write C:/train"):
        find_dataset("C:\train.json:C:images")


def test_folders_of_results_have_names_that_windows_takes():
    names = ("C:\\a\\val.json:C:\\a\\images", "d/val.json:d/images")
    folders = [results_folder("out", name, names).relative_to("out") for name in names]
    assert [len(folder.parts) for folder in folders] == [2, 2]
    assert not {*"".join(map(str, folders))} & set('\\:*?"<>|')


def test_programs_that_run_others_end_them(monkeypatch, tmp_path, tools):
    from _shared.training_runs import Children, _end

    monkeypatch.delattr(os, "killpg")
    monkeypatch.delattr(signal, "SIGKILL")
    monkeypatch.setitem(sys.modules, "fcntl", None)
    assert Children().call([sys.executable, "-c", "print(1)"], folder=tmp_path) == 0
    assert (tmp_path / "console.txt").read_bytes().strip() == b"1"
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        _end([process], at_once=True)
        assert process.wait(60) != 0


def test_ablate_starts_without_sighup(monkeypatch, tools):
    monkeypatch.delattr(signal, "SIGHUP")
    load_script("tools/ablate.py")
    text = Path(ROOT / "tools" / "ablate.py").read_text(encoding="utf-8")
    handlers = text[text.index('if __name__ == "__main__"') :].replace("    main()", "    pass")
    before = signal.getsignal(signal.SIGTERM)
    try:
        exec(handlers, {"__name__": "__main__", "signal": signal})
    finally:
        signal.signal(signal.SIGTERM, before)
