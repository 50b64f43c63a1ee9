"""Several processes: when one fails, all end; and they share images that cannot be split evenly."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers.forks import context
from helpers.runs import edit_json, finish, start, trained, write_config
from torch.multiprocessing import ProcessExitedException, start_processes

from onenet.checkpoints.weights import load_weights
from onenet.cli import training_parser
from onenet.data.dataset import CocoDetection
from onenet.data.sources import find_dataset
from onenet.lightning import launch as processes
from onenet.lightning.build import build_detector
from onenet.lightning.config import load_cfg
from onenet.lightning.evaluate import evaluate

# In its second iteration, a process fails.
FAULTY = """
import os, signal
from onenet.lightning.trainer import Trainer

step = Trainer.step

def failing(self, batch):
    if self.iteration == 1 and os.environ["LOCAL_RANK"] == "{rank}":
        {fault}
    return step(self, batch)

Trainer.step = failing
"""
KILL, RAISE = "os.kill(os.getpid(), signal.SIGKILL)", "raise KeyError('a bug')"


@pytest.mark.parametrize(("fault", "rank", "status"), [(KILL, 0, 137), (RAISE, 1, 1)])
def test_a_process_that_fails_ends_all(shapes, tmp_path, fault, rank, status):
    (tmp_path / "faulty.py").write_text(FAULTY.format(fault=fault, rank=rank))
    config = write_config(tmp_path, shapes, DATASETS__TEST=[])
    process = start(config, "--num-gpus", "2", "--import", tmp_path / "faulty.py")
    code, _, err = finish(process)  # when the last of them has closed its output
    assert code == status, err
    if fault == KILL:
        assert "error: the process of local rank 0 was ended by SIGKILL" in err
        assert "Traceback" not in err
    else:
        assert "Process 1 terminated with the following error:\nTraceback" in err
        assert "KeyError: 'a bug'" in err and err.count("Traceback") == 1


def test_a_machine_that_is_lost_ends_the_others(shapes, tmp_path):
    """Nothing on this machine sees it end, but the connection breaks."""
    lost = FAULTY.replace('"LOCAL_RANK"', '"NODE_RANK"').format(fault=KILL, rank=1)
    (tmp_path / "faulty.py").write_text(lost)
    config = write_config(tmp_path, shapes, DATASETS__TEST=[])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        meet = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    words = ("--num-machines", 2, "--dist-url", meet, "--import", tmp_path / "faulty.py")
    machines = [start(config, *words, "--machine-rank", rank) for rank in (0, 1)]
    (code, _, err), (lost_code, _, _) = (finish(machine) for machine in machines)
    assert (code, lost_code) == (1, 137)
    assert "error: cannot go on: another process has ended" in err and "Traceback" not in err


@pytest.mark.slow
def test_a_port_that_is_taken(shapes, tmp_path):
    config = write_config(tmp_path, shapes, DATASETS__TEST=[])
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        words = ("--num-gpus", 2, "--dist-url", f"tcp://127.0.0.1:{port}")
        code, _, err = finish(start(config, *words))
    assert code == 2 and "Traceback" not in err
    assert f"error: port {port}, at which the processes are to meet, is taken" in err


@pytest.mark.parametrize(
    ("ended", "status", "told"),
    [
        (
            ("", 1, 0, -11, "SIGSEGV"),
            139,
            "error: the process of local rank 1 was ended by SIGSEGV",
        ),
        (("", 0, 0, 3), 3, "error: the process of local rank 0 ended with status 3"),
        (("", 0, 0, 2), 2, ""),  # it has said why
        (("", 1, 0, 143), 143, ""),
    ],
)
def test_how_the_program_ends_as_one_of_its_processes(monkeypatch, capsys, ended, status, told):
    def start_processes(*_: Any, **__: Any) -> None:
        raise ProcessExitedException(*ended)

    monkeypatch.setattr(processes, "start_processes", start_processes)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    words = ["--config-file", "c", "--num-gpus", "2"]
    with pytest.raises(SystemExit) as stop:
        processes.start(training_parser().parse_args(words), print)
    assert (stop.value.code, capsys.readouterr().err.strip()) == (status, told)


# Evaluation


def evaluate_each(data: list[Path], config: Path, folder: Path, how: str) -> None:
    """Evaluate on several data sets; keep the results and metrics of each."""
    cfg = load_cfg(config)
    model = build_detector(cfg)
    load_weights(model, cfg.MODEL.WEIGHTS)
    for path in data:
        source = find_dataset(f"{path}/annotations/instances_val.json:{path}/val")
        output = folder / f"{path.name} {how}"
        metrics = evaluate(cfg, model, CocoDetection(source), output)
        if metrics is not None:
            (output / "metrics.json").write_text(json.dumps(metrics))


def work(rank: int, data: list[Path], config: Path, folder: Path) -> None:
    """Evaluate by 2, 3 and 4 processes."""
    torch.set_num_threads(1)
    for world_size in (2, 3, 4)[max(0, rank - 1) :]:
        meet = f"file://{folder}/meet{world_size}"
        dist.init_process_group("gloo", meet, rank=rank, world_size=world_size)
        evaluate_each(data, config, folder, f"by {world_size}")
        dist.destroy_process_group()


def first(shapes: Path, folder: Path, images: int) -> Path:
    """A data set of the first test images of another."""

    def cut(content: dict[str, Any]) -> None:
        del content["images"][images:]
        kept = {image["id"] for image in content["images"]}
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]

    return edit_json(shapes, folder / f"{images} images", "val", cut)


@pytest.mark.slow
def test_images_that_cannot_be_split_evenly_are_tested_once(shapes, tmp_path):
    data = [first(shapes, tmp_path, images) for images in (5, 2)]
    config, _ = trained(tmp_path, shapes, TEST__IMS_PER_BATCH=1)
    evaluate_each(data, config, tmp_path, "alone")
    context()
    start_processes(work, (data, config, tmp_path), nprocs=4, start_method="forkserver")
    for images, path in zip((5, 2), data, strict=True):
        alone = tmp_path / f"{path.name} alone"
        rows = json.loads((alone / "coco_instances_results.json").read_text())
        assert len({row["image_id"] for row in rows}) == images
        for world_size in (2, 3, 4):
            for file in ("coco_instances_results.json", "metrics.json"):
                shared = tmp_path / f"{path.name} by {world_size}" / file
                assert shared.read_bytes() == (alone / file).read_bytes(), shared
