"""Who started a process: variables of torchrun, of Slurm, and of others."""

from __future__ import annotations

import logging
import os
from types import SimpleNamespace

import pytest
from helpers.launchers import TORCHRUN

from onenet.training import launchers


@pytest.fixture
def take(monkeypatch, caplog):
    """Sets the environment, and returns what is logged of it."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(os, "environ", {})

    def taken(environment: dict[str, str], gpus: int = 2, machines: int = 1) -> list[str]:
        os.environ |= environment
        launchers.take_environment(SimpleNamespace(num_gpus=gpus, num_machines=machines))
        return caplog.messages

    return taken


@pytest.mark.parametrize(("gpus", "more"), [(1, ""), (2, ""), (8, "; --num-gpus 8 is not read")])
def test_torchrun_is_known_by_all_of_its_variables(take, gpus, more):
    told = take(TORCHRUN, gpus)
    assert told == [f"torchrun has started 2 processes on this machine and 4 in all{more}"]
    assert launchers.of_torchrun() and launchers.is_one_of_several()
    assert TORCHRUN.items() <= os.environ.items()


@pytest.mark.parametrize("missing", TORCHRUN)
def test_a_part_of_them_is_not_used(take, missing):
    others = {name: value for name, value in TORCHRUN.items() if name != missing}
    (told,) = take(others)
    assert "LOCAL_RANK=0" in told or missing == "LOCAL_RANK"
    assert "in the environment: not used, as torchrun sets " in told and missing in told
    assert "--num-gpus (2) says how many processes run here" in told
    assert not {"RANK", "LOCAL_RANK", "WORLD_SIZE", "GROUP_RANK"} & os.environ.keys()
    assert launchers.local_rank() == 0 and not launchers.is_one_of_several()


@pytest.mark.parametrize("value", ["", "first", "-1"])
def test_a_rank_that_is_no_number_is_not_used(take, value):
    (told,) = take({"LOCAL_RANK": value})
    assert told.startswith(f"LOCAL_RANK={value} in the environment: not used")
    assert launchers.local_rank() == 0


def test_nothing_is_said_of_an_ordinary_environment(take):
    assert take({"SLURM_NTASKS": "2", "SLURM_PROCID": "0", "MASTER_PORT": "1"}) == []


def test_what_the_program_sets_itself_stays(take, monkeypatch):
    monkeypatch.setattr(launchers, "_own", False)
    launchers.become(1)
    assert take({}) == [] and launchers.local_rank() == 1 and launchers.is_one_of_several()


@pytest.mark.parametrize(("machines", "lines"), [(1, 1), (2, 0)])
def test_tasks_of_srun_that_each_run_the_whole_program(take, machines, lines):
    told = take({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}, machines=machines)
    assert len(told) == lines
    if lines:
        assert told[0].startswith("srun has started 2 tasks, and this is task 1: each of them runs")
