"""Out of memory: the message says how much was asked of it, and which settings ask for less."""

from __future__ import annotations

import pytest
import torch
from helpers.runs import train, write_config
from torch import nn

from onenet.detector import OneNet
from onenet.errors import OutOfMemoryError
from onenet.training.oom import memory_errors

CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nProcess 1 has …")
CUDNN = RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")
ENGINE = RuntimeError("FIND was unable to find an engine to execute this computation")
NCCL = torch.distributed.DistBackendError(
    "NCCL error in: ProcessGroupNCCL.cpp:1, unhandled cuda error, NCCL version 2.26.2\n"
    "ncclUnhandledCudaError: Call to CUDA function failed.\n"
    "Last error:\nCuda failure 2 'out of memory'"
)


class Network(nn.Module):
    def forward(self, images: list) -> int:
        return len(images)


def call(error: Exception, *images: object) -> None:
    network = Network()
    try:
        with memory_errors(network, lambda: "Give it more."):
            network(list(images))
            raise error
    finally:
        assert not network._forward_pre_hooks


@pytest.mark.parametrize("error", [MemoryError(), CUDA, CUDNN, ENGINE, NCCL])
def test_every_way_to_say_so(error):
    images = torch.zeros(3, 40, 50), {"image": torch.zeros(3, 20, 65)}
    with pytest.raises(OutOfMemoryError) as found:
        call(error, *images)
    reason = (str(error).splitlines() or ["MemoryError"])[0]
    assert str(found.value) == (
        f"out of memory with 2 images of up to 64 x 96 px, padded, at a time on each process "
        f"({reason}). Give it more."
    )
    assert found.value.exit_status == 1 and found.value.__cause__ is error


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="another") as error:
        call(RuntimeError("another"))
    assert type(error.value) is RuntimeError


def greedy(self: OneNet, images: list) -> torch.Tensor:
    return torch.empty(2**58)


def test_in_training(shapes, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(OneNet, "batch", greedy)
    with pytest.raises(SystemExit) as stop:
        train(write_config(tmp_path, shapes, SOLVER__ACCUMULATE=2, INPUT__CROP__ENABLED=False))
    error = capsys.readouterr().err
    assert stop.value.code == 1 and error.count("\n") == 1
    assert error.startswith("error: out of memory with 2 images of up to 64 x 64 px, padded")
    assert "can't allocate memory" in error
    for told in (
        "SOLVER.ACCUMULATE (2)",
        "SOLVER.IMS_PER_BATCH (4)",
        "INPUT.MAX_SIZE_TRAIN (64)",
        "INPUT.MIN_SIZE_TRAIN (48, 64)",
        "SOLVER.AMP.ENABLED True",
    ):
        assert told in error


def test_in_evaluation(shapes, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(OneNet, "batch", greedy)
    with pytest.raises(SystemExit) as stop:
        train(write_config(tmp_path, shapes), "--eval-only", "TEST.IMS_PER_BATCH", 3)
    error = capsys.readouterr().err
    assert stop.value.code == 1
    assert error.startswith("error: out of memory with 3 images of up to 64 x 64 px, padded")
    for told in ("TEST.IMS_PER_BATCH (3)", "INPUT.MIN_SIZE_TEST (64)", "TEST.PRECISION bfloat16"):
        assert told in error
