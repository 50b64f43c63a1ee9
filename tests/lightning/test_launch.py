"""Several processes on the CPU: the same training as one, and errors of any of them."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.runs import (
    assert_same,
    edit_json,
    finish,
    load,
    metrics,
    start,
    train,
    training_of,
    write_config,
)

from onenet.checkpoints.files import save_checkpoint

LOSSES = {"loss_ce", "loss_giou", "loss_bbox"}


def without_batch_norms(shapes: Path, folder: Path) -> Path:
    """Plain SGD, whose momentum after an iteration is the gradient, on norms of single images.

    The deconvolutions of the CenterNet head have batch norms, hence FCOS. Images of one size:
    padding depends on the images that share a process.
    """
    return write_config(
        folder,
        shapes,
        MODEL__BACKBONE__NAME="build_retinanet_resnet_fpn_backbone",
        MODEL__RESNETS__NORM="FrozenBN",
        MODEL__FPN__IN_FEATURES=["res3", "res4", "res5"],
        MODEL__FPN__OUT_CHANNELS=32,
        MODEL__OneNet__HEAD="FCOS",
        MODEL__OneNet__IN_FEATURES=["p3", "p4", "p5", "p6", "p7"],
        MODEL__OneNet__CONV_CHANNELS=64,
        MODEL__OneNet__NUM_CONV=1,
        SOLVER__WEIGHT_DECAY=0.0,
        SOLVER__BASE_LR=1e-3,
        SOLVER__WARMUP_ITERS=0,
        SOLVER__STEPS=[],
        SOLVER__MAX_ITER=2,
        SOLVER__CHECKPOINT_PERIOD=1,
        INPUT__CROP__ENABLED=False,
        INPUT__MIN_SIZE_TRAIN=[64],
    )


@pytest.fixture(scope="module")
def one_process(shapes, tmp_path_factory) -> tuple[Path, Path]:
    """A run of one process with the whole batch: its folder and its config."""
    folder = tmp_path_factory.mktemp("one")
    config = without_batch_norms(shapes, folder)
    train(config)
    return folder / "run", config


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.fixture(scope="module")
def by_torchrun(one_process, tmp_path_factory) -> tuple[Path, str]:
    """The same run of two processes under torchrun: its folder and its stdout."""
    folder = tmp_path_factory.mktemp("torchrun")
    return folder, two(one_process[1], "OUTPUT_DIR", folder, program=TORCHRUN)


@pytest.fixture(scope="module")
def in_parts(one_process, tmp_path_factory) -> tuple[Path, str]:
    """The same of two processes that accumulate gradients."""
    folder = tmp_path_factory.mktemp("parts")
    words = ("--num-gpus", "2", "SOLVER.ACCUMULATE", "2", "OUTPUT_DIR", folder)
    return folder, two(one_process[1], *words, new=True, LOCAL_RANK="0", NODE_RANK="1")


@pytest.fixture(scope="module")
def on_two_machines(one_process, tmp_path_factory) -> tuple[Path, str]:
    """The same of two machines with a process each, which meet on the loopback."""
    folder = tmp_path_factory.mktemp("machines")
    words = ["--num-machines", 2, "--dist-url", f"tcp://127.0.0.1:{free_port()}"]
    return folder, by_machine(one_process[1], folder, lambda rank: (*words, "--machine-rank", rank))


@pytest.fixture(scope="module")
def on_two_machines_by_torchrun(one_process, tmp_path_factory) -> tuple[Path, str]:
    """The same under an agent of torchrun on each."""
    folder, port = tmp_path_factory.mktemp("agents"), free_port()

    def agent(rank: int) -> tuple[str, ...]:
        meet = ("--nnodes", "2", "--master-addr", "127.0.0.1", "--master-port", str(port))
        return ("-m", "torch.distributed.run", *meet, "--node-rank", str(rank))

    return folder, by_machine(one_process[1], folder, lambda rank: (), agent)


def by_machine(config: Path, folder: Path, words: Any, program: Any = lambda rank: ()) -> str:
    """Stdout of the first of two machines, whose flags and launcher depend on the rank."""
    machines = [
        start(config, *words(rank), "OUTPUT_DIR", folder, program=program(rank)) for rank in (0, 1)
    ]
    ended = [finish(machine) for machine in machines]
    assert [code for code, _, _ in ended] == [0, 0], [err for _, _, err in ended]
    return ended[0][1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def two(config: Path, *words: Any, **options: Any) -> str:
    """Stdout of a run of two processes; see :func:`start`."""
    # A job of SLURM with one task must not keep the program from starting its own processes.
    slurm = {"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "train", "SLURM_NTASKS_PER_NODE": "1"}
    code, out, err = finish(start(config, *words, **options, **slurm))
    assert code == 0, err
    return out


def flat(tensors: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


@pytest.mark.slow
def test_variables_of_another_launcher_are_not_used_and_torchruns_are(in_parts, by_torchrun):
    assert "LOCAL_RANK=0, NODE_RANK=1 in the environment: not used" in in_parts[1]
    assert "torchrun has started 2 processes on this machine and 2 in all" in by_torchrun[1]


@pytest.mark.parametrize(
    "kind",
    [
        "in_parts",
        pytest.param("by_torchrun", marks=pytest.mark.slow),
        "on_two_machines",
        pytest.param("on_two_machines_by_torchrun", marks=pytest.mark.slow),
    ],
)
def test_two_processes_are_one(one_process, request, kind):
    alone, _ = one_process
    folder, out = request.getfixturevalue(kind)
    assert "2 processes" in out
    (one, _), (two, _) = metrics(alone), metrics(folder)
    for name in LOSSES:  # means over both iterations and both processes
        assert two[name] == pytest.approx(one[name], rel=1e-5), name
    for checkpoint in ("model_0000000.pth", "model_0000001.pth"):
        ours, theirs = load(folder / checkpoint), load(alone / checkpoint)
        gradients = [
            flat([state["momentum_buffer"] for state in run["optimizer"]["state"].values()])
            for run in (ours, theirs)
        ]
        error = (gradients[0] - gradients[1]).norm() / gradients[1].norm()
        assert gradients[1].norm() > 0 and error < 5e-4
        for name, value in theirs["model"].items():
            torch.testing.assert_close(ours["model"][name], value, rtol=1e-5, atol=5e-5)
    results = "inference/coco_instances_results.json"
    rows = [json.loads((run / results).read_text()) for run in (folder, alone)]
    assert [r["image_id"] for r in rows[0]] == [r["image_id"] for r in rows[1]]
    aps = [line for run in (folder, alone) for line in metrics(run) if "bbox/AP" in line]
    assert aps[0] == pytest.approx(aps[1], abs=0.1, nan_ok=True)


# The second process is killed in its second iteration, the first time that it is started.
KILLED_ONCE = """
import os, signal
from onenet.lightning.trainer import Trainer

step = Trainer.step

def killed(self, batch):
    first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if first and self.iteration == 1 and os.environ["LOCAL_RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, batch)

Trainer.step = killed
"""


@pytest.mark.slow
def test_torchrun_restarts_from_the_last_checkpoint(one_process, by_torchrun, tmp_path):
    hook, run = tmp_path / "killed_once.py", tmp_path / "run"
    hook.write_text(KILLED_ONCE)
    # Its processes are forked from the one that has everything imported.
    program = (*TORCHRUN, "--max-restarts", "1", "--run-path", "--start-method", "fork")
    out = two(one_process[1], "--import", hook, "OUTPUT_DIR", run, program=program)
    assert "torchrun has started this run again, which goes on from what it has saved" in out
    assert f"Resumed from {run / 'model_0000000.pth'}: 1 iterations are done" in out
    for file in ("model_0000001.pth", "model_final.pth"):
        assert_same(training_of(run / file), training_of(by_torchrun[0] / file))


def test_torchrun_does_not_resume_a_run_that_it_did_not_start(one_process, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "model_0000000.pth").write_bytes((one_process[0] / "model_0000000.pth").read_bytes())
    (run / "run.json").write_bytes((one_process[0] / "run.json").read_bytes())
    program = (*TORCHRUN, "--max-restarts", "1", "--run-path", "--start-method", "fork")
    code, _, err = finish(start(one_process[1], "OUTPUT_DIR", run, program=program))
    assert code == 1 and err.count(f"error: OUTPUT_DIR {run} holds run ") == 2
    assert sorted(path.name for path in run.iterdir()) == [".lock", "model_0000000.pth", "run.json"]


def test_what_is_evaluated_is_what_is_saved(shapes, tmp_path):
    """The first process saves its batch norms' statistics; the second one has others."""
    config = write_config(tmp_path, shapes, SOLVER__MAX_ITER=3)
    code, _, err = finish(start(config, "--num-gpus", "2"))
    assert code == 0, err
    weights, again = tmp_path / "run" / "model_final.pth", tmp_path / "again"
    words = ["--eval-only", "MODEL.WEIGHTS", weights, "TEST.FUSE", False, "OUTPUT_DIR", again]
    train(config, *words)
    results = "inference/coco_instances_results.json"
    ours, theirs = (json.loads((run / results).read_text()) for run in (tmp_path / "run", again))
    for image in {row["image_id"] for row in theirs}:
        scores = [[r["score"] for r in rows if r["image_id"] == image] for rows in (ours, theirs)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-5)


def test_an_error_of_the_second_process_is_told(shapes, tmp_path):
    def break_one(content: dict) -> None:
        # The processes take turns, so the second one meets this image.
        content["images"][1]["height"] = 1

    data = edit_json(shapes, tmp_path / "broken", "val", break_one)
    # Evaluation does not share the batch of training.
    config = write_config(tmp_path, data, SOLVER__IMS_PER_BATCH=3)
    code, _, err = finish(start(config, "--num-gpus", "2", "--eval-only"))
    assert code != 0
    (line,) = (line for line in err.splitlines() if line.startswith("error: "))
    assert "000001.jpg" in line


def test_an_error_of_all_processes_is_told_once(shapes, tmp_path):
    config = write_config(tmp_path, shapes, SOLVER__MAX_ITER=1)
    other = tmp_path / "other.pth"
    save_checkpoint(other, {"model": {"head.other": torch.zeros(1)}})
    code, _, err = finish(start(config, "--num-gpus", "2", "MODEL.WEIGHTS", other))
    assert code == 2
    assert err.startswith(f"error: {other} does not fit the model.")
    assert err.count("error: ") == 1 and "Traceback" not in err


# The losses of the second process go wrong in three iterations.
SPOILT = """
import os
from onenet.assignment.criterion import Criterion

forward, calls = Criterion.forward, []

def spoilt(self, *args):
    calls.append(0)
    losses = forward(self, *args)
    if os.environ.get("LOCAL_RANK") == "1" and len(calls) in (2, 4, 5):
        losses["loss_giou"] = losses["loss_giou"] * float("nan")
    return losses

Criterion.forward = spoilt
"""


def test_what_goes_wrong_on_one_process_is_skipped_and_stops_on_all(shapes, tmp_path):
    (tmp_path / "spoilt.py").write_text(SPOILT)
    config = write_config(
        tmp_path, shapes, SOLVER__SKIP_NONFINITE=1, SOLVER__CHECKPOINT_PERIOD=1, DATASETS__TEST=[]
    )
    words = ("--num-gpus", "2", "--import", tmp_path / "spoilt.py")
    code, out, err = finish(start(config, *words))
    assert code == 1
    assert "iteration 2 is skipped, number 1 since the start: loss_giou = nan" in out
    (line,) = (line for line in err.splitlines() if line.startswith("error: "))
    assert "iteration 5: loss_giou = nan" in line
    assert sum(f"{i:06d}.jpg" in line for i in range(12)) == 4
    run = tmp_path / "run"
    first, second, *_ = (load(run / f"model_{i:07d}.pth")["model"] for i in range(3))
    assert all(torch.equal(first[name], second[name]) for name in first)
    # Only the process whose losses they were tells what it computed them on.
    assert [path.name for path in run.glob("nonfinite*")] == ["nonfinite_0000005_rank1.pt"]
    assert str(run / "nonfinite_0000005_rank1.pt") in line
    files = load(run / "nonfinite_0000005_rank1.pt")["files"]
    assert len(files) == 2 and all(file in line for file in files)
