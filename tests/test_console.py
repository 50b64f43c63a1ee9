"""Programs whose stdout lacks characters, is full, or has lost its reader."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.project import ROOT

PROGRAM = """
import argparse, sys
from onenet.cli import run_program
def run(args):
    for _ in range(int(sys.argv[1])):
        print("class \\u5706")
sys.argv[2:] = []
run_program(argparse.ArgumentParser(), run, [])
"""
TRAINING = """
import logging, pathlib, sys
from onenet.lightning.monitor import setup_logging
setup_logging(pathlib.Path(sys.argv[1]))
for i in range(3):
    logging.getLogger("onenet").info("iteration %d, class \\u5706", i)
print("done")
"""


def start(code: str, *words: object, stdout: int = subprocess.PIPE, **env: str) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "projects" / "OneNet"), **env}
    command = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, env=environment)


@pytest.fixture
def closed_pipe() -> Iterator[int]:
    """The writing end of a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_characters_that_the_terminal_lacks_are_escaped(encoding):
    out, err = start(PROGRAM, 1, PYTHONIOENCODING=encoding).communicate()
    assert (out.decode().strip(), err) == (r"class \u5706", b"")


def test_a_program_whose_reader_is_gone_ends_silently(closed_pipe):
    program = start(PROGRAM, 1, stdout=closed_pipe)
    assert (program.communicate()[1], program.returncode) == (b"", 141)
    program = start(PROGRAM, 100_000)
    program.stdout.readline()
    program.stdout.close()
    assert (program.stderr.read(), program.wait()) == (b"", 141)
    program.stderr.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_program_whose_output_finds_no_room_says_so():
    with open("/dev/full", "wb") as full:
        program = start(PROGRAM, 1, stdout=full.fileno())
        err = program.communicate()[1].decode()
    assert err == "error: [Errno 28] No space left on device\n" and program.returncode == 2


def test_training_logs_on_without_a_terminal(tmp_path, closed_pipe):
    program = start(TRAINING, tmp_path, stdout=closed_pipe, PYTHONIOENCODING="ascii")
    assert (program.communicate()[1], program.returncode) == (b"", 0)
    text = (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert [f"iteration {i}, class \u5706" in text for i in range(3)] == [True] * 3
    assert text.count("stdout takes no more lines") == 1


def test_the_log_of_a_training_is_utf8_everywhere(tmp_path):
    environment = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    program = start(TRAINING, tmp_path, **environment)
    out, err = program.communicate()
    assert err == b"" and program.returncode == 0 and out.count(rb"class \u5706") == 3
    assert (tmp_path / "log.txt").read_text(encoding="utf-8").count("class \u5706") == 3
