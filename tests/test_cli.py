"""train_net.py: its flags, what it refuses and how it says so, and what it prints."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.runs import (
    TRAIN_NET,
    edit_json,
    finish,
    start,
    train,
    trained,
    unchanged_process,
    write_config,
)

from onenet.checkpoints.files import read_checkpoint, save_checkpoint
from onenet.cli import ENGINES, choose_engine, training_parser
from onenet.config.device import device_of
from onenet.errors import ConfigError
from onenet.lightning import main
from onenet.lightning.config import load_cfg
from onenet.lightning.launch import check_processes, join
from onenet.training import launchers


def refused(capsys: pytest.CaptureFixture, config: Path, *words: Any) -> str:
    """The single line that a refused command line prints to stderr."""
    with pytest.raises(SystemExit) as stop:
        train(config, *words)
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and "Traceback" not in err
    assert len(err.splitlines()) == 1, err
    return err


@pytest.fixture
def config(shapes, tmp_path) -> Path:
    return write_config(tmp_path, shapes, SOLVER__MAX_ITER=1, SOLVER__IMS_PER_BATCH=2)


def test_help_names_the_flags():
    # Works even if the package is not installed beside the program's folder.
    done = subprocess.run(
        [sys.executable, str(TRAIN_NET), "--help"], capture_output=True, text=True, check=True
    )
    for flag in (
        "--config-file", "--num-gpus", "--eval-only", "--resume", "--num-machines",
        "--machine-rank", "--dist-url", "--engine",
    ):  # fmt: skip
        assert flag in done.stdout


def test_detectron2s_command_line_is_understood():
    args = training_parser().parse_args(
        "--num-gpus 8 --config-file c.yaml --eval-only MODEL.WEIGHTS path/to/model.pth".split()
    )
    assert (args.num_gpus, args.config_file, args.eval_only) == (8, "c.yaml", True)
    assert args.opts == ["MODEL.WEIGHTS", "path/to/model.pth"]
    assert (args.resume, args.num_machines, args.machine_rank) == (False, 1, 0)
    assert (args.dist_url, args.engine) == ("auto", "auto")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "--config-file"),
        (["--config-file", "c", "--engine", "tensorflow"], "tensorflow"),
        (["--config-file", "c", "--num-gpus", "0"], "must be a whole number of at least 1, got 0"),
        (["--config-file", "c", "--num-gpus", "all"], "a whole number of at least 1, got all"),
        (["--config-file", "c", "--num-machines", "-1"], "--num-machines"),
    ],
)
def test_wrong_flags_are_refused(words, told, capsys):
    with pytest.raises(SystemExit) as stop:
        training_parser().parse_args(words)
    assert stop.value.code == 2
    assert told in capsys.readouterr().err


def test_unknown_engine_is_refused_with_the_choices():
    with pytest.raises(ValueError, match=f"one of {', '.join(ENGINES)}, got 'other'"):
        choose_engine("other")


def test_missing_config_file(tmp_path, capsys):
    assert "none.yaml" in refused(capsys, tmp_path / "none.yaml")


def test_unknown_key(config, capsys):
    error = refused(capsys, config, "SOLVER.BASE_RL", "1")
    assert "SOLVER.BASE_RL" in error and "SOLVER.BASE_LR" in error


def test_missing_dataset(config, tmp_path, capsys):
    source = f"{tmp_path}/none.json:{tmp_path}"
    assert f"{tmp_path}/none.json" in refused(capsys, config, "DATASETS.TEST", f"('{source}',)")


@pytest.mark.parametrize(
    ("flags", "key"), [((), "DATASETS.TRAIN"), (("--eval-only",), "DATASETS.TEST")]
)
def test_no_dataset(config, capsys, flags, key):
    assert f"{key} is empty" in refused(capsys, config, *flags, key, "()")


@pytest.mark.parametrize("flags", [(), ("--eval-only",)])
def test_another_number_of_classes(config, capsys, tmp_path, flags):
    error = refused(capsys, config, *flags, "MODEL.OneNet.NUM_CLASSES", 80)
    assert "has 6 classes" in error and "MODEL.OneNet.NUM_CLASSES is 80" in error
    assert error.rstrip().endswith("MODEL.OneNet.NUM_CLASSES 6")
    assert not (tmp_path / "run").exists()


def test_missing_weights(config, capsys, tmp_path):
    assert "none.pth: there is no such file" in refused(
        capsys, config, "MODEL.WEIGHTS", tmp_path / "none.pth"
    )
    assert not (tmp_path / "run").exists()


def test_evaluating_a_backbone_alone_is_refused(config, capsys, tmp_path):
    save_checkpoint(tmp_path / "resnet.pth", {"layer1.0.conv1.weight": torch.zeros(1)})
    error = refused(capsys, config, "--eval-only", "MODEL.WEIGHTS", tmp_path / "resnet.pth")
    assert "holds a backbone only" in error


def test_batch_that_cannot_be_shared(config, capsys):
    error = refused(capsys, config, "--num-gpus", 3)
    assert "SOLVER.IMS_PER_BATCH is 2" in error and "3 processes" in error


def test_batch_norms_that_processes_share_on_cuda_only(config, capsys):
    words = ("--num-gpus", 2, "MODEL.RESNETS.NORM", "SyncBN")
    error = refused(capsys, config, *words)
    assert "MODEL.RESNETS.NORM is 'SyncBN'" in error and "'BN' or 'FrozenBN'" in error
    check_processes(load_cfg(config, words[2:]), arguments(config))  # one process


@pytest.mark.parametrize("url", ["127.0.0.1:80", "file:///tmp/x", "tcp://host", "tcp://host:port"])
def test_bad_dist_url(config, capsys, url):
    error = refused(capsys, config, "--num-gpus", 2, "--dist-url", url)
    assert "tcp://HOST:PORT" in error and url in error


def test_several_machines_need_a_meeting_place(config, capsys):
    assert "tcp://HOST:PORT" in refused(capsys, config, "--num-machines", 2)


@pytest.mark.parametrize("rank", [2, -1])
def test_machine_rank_out_of_range(config, capsys, rank):
    url = "tcp://127.0.0.1:23456"
    error = refused(capsys, config, "--num-machines", 2, "--machine-rank", rank, "--dist-url", url)
    assert "--machine-rank must be from 0 to 1" in error and f"got {rank}" in error


def test_output_folder_that_is_a_file(config, capsys, tmp_path):
    (tmp_path / "file").touch()
    assert f"OUTPUT_DIR {tmp_path}/file" in refused(capsys, config, "OUTPUT_DIR", tmp_path / "file")


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_image_is_named(shapes, tmp_path, capsys, workers):
    def none(content: dict) -> None:
        pass

    data = edit_json(shapes, tmp_path / "broken", "train", none)
    for image in (data / "train").iterdir():
        image.write_bytes(image.read_bytes()[:100])
    config = write_config(tmp_path, data, DATALOADER__NUM_WORKERS=workers)
    error = refused(capsys, config)
    assert str(data / "train" / "0000") in error
    assert "Worker" not in error and "worker" not in error
    # The log holds the reason, too.
    assert error.strip() in (tmp_path / "run" / "log.txt").read_text()


def test_evaluation_of_random_weights_warns_and_gives_ap(config, tmp_path, capsys):
    found = train(config, "--eval-only")
    out = capsys.readouterr().out
    assert "random weights" in out
    assert "|   AP |   AP50 |" in out and "triangle" in out
    assert "bbox/AP" in found
    results = tmp_path / "run" / "inference" / "coco_instances_results.json"
    assert json.loads(results.read_text())


def test_classes_in_another_order_are_pointed_out(shapes, tmp_path, capsys):
    def swap(content: dict) -> None:
        first, second = content["categories"][:2]
        first["name"], second["name"] = second["name"], first["name"]

    data = edit_json(shapes, tmp_path / "swapped", "val", swap)
    train(write_config(tmp_path, data, SOLVER__MAX_ITER=1))
    assert "class 1 is circle in one and ring in the other" in capsys.readouterr().out


@pytest.mark.parametrize("order", [1, -1])
def test_a_checkpoint_whose_classes_have_another_order_is_mapped_by_name(
    shapes, tmp_path, capsys, order
):
    data = json.loads((shapes / "annotations" / "instances_val.json").read_text())
    names = [category["name"] for category in data["categories"]][::order]
    config, weights = trained(tmp_path, shapes, {"class_names": names})
    train(config, "--eval-only", "OUTPUT_DIR", tmp_path / "named")
    out = capsys.readouterr().out
    told = f"{weights} has the same classes in another order ({names[0]}, "
    assert (told in out) == (order == -1) and "differently" not in out
    save_checkpoint(weights, {"model": read_checkpoint(weights)["model"]})
    train(config, "--eval-only", "OUTPUT_DIR", tmp_path / "unnamed")
    named, unnamed = (
        json.loads((tmp_path / name / "inference/coco_instances_results.json").read_text())
        for name in ("named", "unnamed")
    )
    ids = [category["id"] for category in data["categories"]]
    to = dict(zip(ids, ids[::order], strict=True))
    found, expected = (
        sorted((r["image_id"], names[r["category_id"]], r["score"]) for r in results)
        for results, names in ((named, dict(zip(ids, ids, strict=True))), (unnamed, to))
    )
    assert [row[:2] for row in found] == [row[:2] for row in expected]
    assert [row[2] for row in found] == pytest.approx([row[2] for row in expected], rel=1e-5)


def test_a_checkpoint_of_other_classes_is_evaluated_in_their_order_and_pointed_out(
    shapes, tmp_path, capsys
):
    names = ["circle", "ring", "cube", "triangle", "star", "cross"]
    config, weights = trained(tmp_path, shapes, {"class_names": names})
    train(config, "--eval-only")
    out = capsys.readouterr().out
    assert f"{weights} and " in out and "class 3 is cube in one and square in the other" in out


def test_interruption_ends_in_a_line(config, capsys, monkeypatch):
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(main.Trainer, "step", interrupt)
    with pytest.raises(SystemExit) as stop:
        train(config)
    assert stop.value.code == 130
    assert capsys.readouterr().err.splitlines() == [
        "interrupted; --resume goes on from the last checkpoint"
    ]


def arguments(config: Path, **changes: Any) -> SimpleNamespace:
    args = training_parser().parse_args(["--config-file", str(config)])
    return SimpleNamespace(**{**vars(args), **changes})


def test_a_slurm_job_without_srun_is_no_hindrance(config, monkeypatch):
    with unchanged_process():
        monkeypatch.setenv("SLURM_NTASKS", "1")
        monkeypatch.setenv("SLURM_JOB_NAME", "train")
        monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "4")
        fabric = join(load_cfg(config), arguments(config))
    assert fabric.world_size == 1 and fabric.global_rank == 0


def test_more_gpus_than_there_are(config, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    cfg = load_cfg(config, ["MODEL.DEVICE", "cuda"])
    with pytest.raises(ConfigError, match=r"--num-gpus 2: this machine has 1 CUDA device"):
        check_processes(cfg, arguments(config, num_gpus=2))


@pytest.mark.parametrize(
    ("count", "told"), [(1, "has 1 CUDA device(s): N must be 0"), (4, "N must be 0 to 3")]
)
def test_a_gpu_that_is_not_there(config, monkeypatch, count, told):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    cfg = load_cfg(config, ["MODEL.DEVICE", f"cuda:{count}"])
    with pytest.raises(ConfigError) as error:
        check_processes(cfg, arguments(config))
    assert str(error.value).startswith(f"MODEL.DEVICE is 'cuda:{count}', but this machine has ")
    assert told in str(error.value)
    assert device_of(load_cfg(config, ["MODEL.DEVICE", f"cuda:{count - 1}"])).index == count - 1


def test_terminal_shows_the_run_and_nothing_else(config, tmp_path):
    """In a separate process, since libraries warn once, on import."""
    code, out, err = finish(
        start(
            config, "DATALOADER.NUM_WORKERS", 1, "SOLVER.STEPS", "()", new=True, PYTHONWARNINGS=""
        )
    )
    assert code == 0 and err == ""
    lines = out.splitlines()
    assert all(line.startswith(("[", "|", "duplicates: ")) or not line for line in lines), out
    assert "arning" not in out
    assert "Embedded engine" in lines[0]
    assert "iteration 1/1" in out and "AP50" in out
    assert lines == (tmp_path / "run" / "log.txt").read_text().splitlines()


def test_another_process_waits_for_the_first_to_tell_what_all_find(config, monkeypatch):
    slept, left = [], []
    monkeypatch.setattr(main.time, "sleep", slept.append)
    monkeypatch.setattr(main, "leave", left.append)
    monkeypatch.setattr(launchers, "_own", False)  # and again afterwards
    with unchanged_process():
        launchers.become(1)
        with pytest.raises(SystemExit) as stop:
            main.run(arguments(config, opts=["NO.SUCH", "KEY"]), "a test")
    assert stop.value.code == 2 and slept == [main.PATIENCE] and left == [2]
