"""The embedded engine's program: set up, then train or evaluate."""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
import time
import warnings
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
import yaml
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.fabric.strategies import DDPStrategy

from onenet.checkpoint import find_last_checkpoint, load_weights, locate_weights
from onenet.cli import end_with
from onenet.datasets import find_dataset
from onenet.errors import OneNetError
from onenet.inference_config import prepare_inference
from onenet.training_config import check_training
from onenet.yaml_files import ConfigError

from .config import load_cfg
from .datasets import CocoDetection
from .detector import build_detector, choose_device
from .monitor import setup_logging
from .test_sets import evaluate_all
from .train import Trainer

logger = logging.getLogger(__name__)
PATIENCE = 3.0  # seconds in which the first process may report what fails everywhere


def run(args: argparse.Namespace, why: str) -> dict[str, float] | None:
    """Train or evaluate as the command line says (:func:`onenet.cli.training_parser`).

    Args:
        why: this engine was chosen; for the log.

    Returns:
        On rank 0 the metrics of the last evaluation, if there was one.

    Raises:
        SystemExit: 2, after one line that says what to mend, where the user's files, values or
            weights are at fault; 1 where training diverged; 130 after Ctrl-C.
    """
    try:
        return _run(args, why)
    except OneNetError as error:
        _exit(error, args.traceback)
    except KeyboardInterrupt as error:
        if int(os.environ.get("LOCAL_RANK", 0)) == 0:
            print("interrupted; --resume goes on from the last checkpoint", file=sys.stderr)
        raise SystemExit(130) from error


def _exit(error: OneNetError, show_traceback: bool) -> NoReturn:
    # A DataLoader puts the traceback of its worker before the message.
    message = str(error).rpartition(f"{type(error).__name__}: ")[2].strip()
    if int(os.environ.get("LOCAL_RANK", 0)) > 0:
        if not dist.is_initialized():
            raise SystemExit(error.exit_status) from error
        # Where all fail alike, the first process says so and ends this one; see _end_children.
        time.sleep(PATIENCE)
    logger.error("error: %s", message, extra={"on_bar": True})  # for log.txt
    end_with(error, show_traceback, message)


def _end_children(fabric: Fabric) -> None:
    """End the processes that were started here, which would wait for this one for ever."""
    for process in getattr(fabric.strategy.launcher, "procs", ()):
        process.kill()


def _run(args: argparse.Namespace, why: str) -> dict[str, float] | None:
    _silence()
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    setup_logging(None, rank=local_rank)
    cfg = load_cfg(args.config_file, args.opts)
    test_sources = [find_dataset(name) for name in cfg.DATASETS.TEST]
    train_sources = [] if args.eval_only else [find_dataset(name) for name in cfg.DATASETS.TRAIN]
    if args.eval_only and not test_sources:
        raise ConfigError("DATASETS.TEST is empty: name what to evaluate on")
    if not args.eval_only and not train_sources:
        raise ConfigError("DATASETS.TRAIN is empty: name what to train on")
    keep_empty = not cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    train_sets = [CocoDetection(source, keep_empty=keep_empty) for source in train_sources]
    test_sets = [CocoDetection(source) for source in test_sources]
    for dataset in (*train_sets, *test_sets):
        dataset.check_num_classes(cfg.MODEL.OneNet.NUM_CLASSES)
    for dataset in train_sets:
        dataset.check_images(skip_missing=cfg.DATALOADER.SKIP_UNREADABLE)
    for dataset in test_sets:
        dataset.check_images()
    _warn_of_other_classes(train_sets, test_sets)

    if local_rank == 0 and cfg.MODEL.WEIGHTS:
        if not args.resume or find_last_checkpoint(Path(cfg.OUTPUT_DIR)) is None:
            # What must be fetched is fetched once a machine: other processes wait in launch().
            locate_weights(cfg.MODEL.WEIGHTS)
    fabric = launch(cfg, args)
    try:
        return _work(cfg, args, why, fabric, train_sets, test_sets)
    except BaseException:
        _end_children(fabric)
        raise


def _work(
    cfg: Any,
    args: argparse.Namespace,
    why: str,
    fabric: Fabric,
    train_sets: list[CocoDetection],
    test_sets: list[CocoDetection],
) -> dict[str, float] | None:
    """What every process does once they have met."""
    try:
        setup_logging(Path(cfg.OUTPUT_DIR), fabric.global_rank)
    except OSError as error:
        raise ConfigError(f"OUTPUT_DIR {cfg.OUTPUT_DIR} cannot be written: {error}") from error
    logger.info(
        "Embedded engine (%s): %d process%s on %s, torch %s",
        why,
        fabric.world_size,
        "es" * (fabric.world_size > 1),
        torch.cuda.get_device_name() if fabric.device.type == "cuda" else "the CPU",
        torch.__version__,
    )
    torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    if fabric.global_rank == 0:
        (Path(cfg.OUTPUT_DIR) / "config.yaml").write_text(dump(cfg))

    if not args.eval_only:
        trainer = Trainer(
            cfg, fabric, train_sets=train_sets, test_sets=test_sets, resume=args.resume
        )
        return trainer.train()
    model = build_detector(cfg)
    if cfg.MODEL.WEIGHTS:
        load_weights(model, cfg.MODEL.WEIGHTS, detector=True)
    else:
        logger.warning("MODEL.WEIGHTS is empty: evaluating a model with random weights")
    return evaluate_all(cfg, prepare_inference(cfg, model.to(fabric.device)), test_sets)


def _warn_of_other_classes(train_sets: list[CocoDetection], test_sets: list[CocoDetection]) -> None:
    for test_set in test_sets if train_sets else ():
        ours, theirs = train_sets[0].class_names, test_set.class_names
        if ours != theirs:
            i = next(i for i, pair in enumerate(zip(ours, theirs, strict=True)) if len({*pair}) > 1)
            logger.warning(
                "%s and %s name their classes differently (by category id, number %d is %s and %s):"
                " trained labels are tested in this order",
                train_sets[0].source.json_file,
                test_set.source.json_file,
                i + 1,
                ours[i],
                theirs[i],
            )


def launch(cfg: Any, args: argparse.Namespace) -> Fabric:
    """Start the processes and join their group.

    Under ``torchrun`` its processes are used; otherwise ``--num-gpus`` are started here, on the
    CPU where there is no CUDA.

    Raises:
        ConfigError: more GPUs than there are, or what :func:`check_training` finds.
    """
    if torchrun := "TORCHELASTIC_RUN_ID" in os.environ:
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    else:
        devices, nodes = args.num_gpus, args.num_machines
    device = choose_device(cfg)
    if device.type == "cuda" and devices > torch.cuda.device_count():
        raise ConfigError(
            f"--num-gpus {devices}: this machine has {torch.cuda.device_count()} CUDA device(s)"
        )
    processes = devices * nodes
    if not args.eval_only:
        check_training(cfg, processes)
    if processes > 1 and not torchrun:
        _set_rendezvous(args)
    if device.type == "cpu" and processes > 1:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // devices)))
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    which: Any = devices
    if device.type == "cuda" and devices == 1 and device.index is not None and not torchrun:
        which = [device.index]
    fabric = Fabric(
        accelerator=device.type,
        devices=which,
        num_nodes=nodes,
        # Batch norms keep their own statistics on each process, as under Detectron2.
        strategy=DDPStrategy(broadcast_buffers=False) if processes > 1 or torchrun else "auto",
        precision="bf16-mixed" if cfg.SOLVER.AMP.ENABLED else "32-true",
        # Or else it would wait for SLURM to start processes.
        plugins=None if torchrun else [LightningEnvironment()],
    )
    fabric.launch()
    return fabric


def _set_rendezvous(args: argparse.Namespace) -> None:
    """Tell Lightning where the processes meet."""
    if not 0 <= args.machine_rank < args.num_machines:
        raise ConfigError(
            f"--machine-rank must be from 0 to {args.num_machines - 1}, as --num-machines is "
            f"{args.num_machines}, got {args.machine_rank}"
        )
    if args.dist_url == "auto":
        if args.num_machines > 1:
            raise ConfigError(
                "--dist-url auto works on one machine; for several give tcp://HOST:PORT of the "
                "first one on each"
            )
        host, port = "127.0.0.1", os.environ.get("MASTER_PORT") or str(_free_port())
    else:
        scheme, _, address = args.dist_url.partition("://")
        host, _, port = address.rpartition(":")
        if scheme != "tcp" or not host or not port.isdigit():
            raise ConfigError(f"--dist-url must be auto or tcp://HOST:PORT, got {args.dist_url}")
    os.environ.update(MASTER_ADDR=host, MASTER_PORT=port, NODE_RANK=str(args.machine_rank))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def dump(cfg: Any) -> str:
    """The complete config as YAML that :func:`~onenet.engine.config.load_cfg` reads back."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(below) for key, below in value.items()}
        return [plain(v) for v in value] if isinstance(value, list | tuple) else value

    return yaml.safe_dump(plain(cfg), sort_keys=True, default_flow_style=None)


def _silence() -> None:
    """Hide warnings of libraries that the user cannot act on."""
    for module in ("lightning", "lightning_utilities", "torch.utils.data", "torch.distributed"):
        warnings.filterwarnings("ignore", module=rf"{module}(\.|$)")
