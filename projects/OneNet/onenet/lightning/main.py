"""The embedded engine as a program: set up, then train or evaluate."""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from pathlib import Path
from typing import Any, NoReturn

import torch
from lightning.fabric import Fabric

from onenet.checkpoints.weights import load_weights, locate_weights
from onenet.config.build import prepare_inference
from onenet.config.device import make_deterministic, warn_of_bfloat16
from onenet.config.imports import import_files
from onenet.config.rules import warn_of_idle_steps
from onenet.data.dataset import CocoDetection
from onenet.data.sources import compare_classes, find_dataset
from onenet.errors import LostProcessError, OneNetError, end_with
from onenet.files import remove_partial_files, write_whole
from onenet.training.launchers import local_rank, take_environment
from onenet.training.setup import data_sets, load_to_evaluate, needs_weights, output_errors
from onenet.training.signals import end_stopped, stop_at_once

from .build import build_detector
from .config import dump, load_cfg
from .launch import (
    check_processes,
    has_own_checkpoint,
    is_lost_process,
    join,
    leave,
    must_start,
    start,
    started_again,
)
from .monitor import setup_logging
from .test_sets import evaluate_all
from .trainer import Trainer

logger = logging.getLogger(__name__)
PATIENCE = 5.0  # seconds for another process to say what failed


def run(args: argparse.Namespace, why: str) -> dict[str, float] | None:
    """Train or evaluate as the command line says (:func:`onenet.cli.training_parser`).

    Args:
        why: the reason for this engine, for the log.

    Returns:
        On rank 0 the metrics of the last evaluation, if there was one; ``None`` if this process
        has started others for the work.

    Raises:
        SystemExit: 2 if the user's files, values or weights are wrong, after one line that says
            what to do; 1 if training diverged or its result cannot be written; 130 after Ctrl-C,
            143 after SIGTERM.
    """
    try:
        with stop_at_once():
            return _run(args, why)
    except OneNetError as error:
        _exit(error, args.traceback)
    except KeyboardInterrupt as error:
        if local_rank() > 0:
            time.sleep(PATIENCE)
            end_stopped(error, None)
        end_stopped(error, lambda line: logger.warning(line, extra={"on_bar": True}))
    except Exception as error:
        if not is_lost_process(error):
            raise
        # The process that started this one says which one it was, and ends this one.
        time.sleep(PATIENCE)
        lost = LostProcessError("cannot go on: another process has ended")
        lost.__cause__ = error
        _exit(lost, args.traceback)


def _exit(error: OneNetError, show_traceback: bool) -> NoReturn:
    # A DataLoader puts the traceback of its worker before the message.
    message = str(error).rpartition(f"{type(error).__name__}: ")[2].strip()
    if local_rank() > 0:
        # If all fail alike, the first process says so and ends this one.
        time.sleep(PATIENCE)
    logger.error("error: %s", message, extra={"on_bar": True})  # for log.txt
    try:
        end_with(error, show_traceback, message)
    finally:
        leave(error.exit_status)


def _run(args: argparse.Namespace, why: str) -> dict[str, float] | None:
    _silence()
    setup_logging(None, rank=local_rank())
    take_environment(args)
    import_files(args.imports)
    cfg = load_cfg(args.config_file, args.opts)
    check_processes(cfg, args)
    if must_start(args):
        start(args, run, why)
        return None
    train_names, test_names = data_sets(cfg, eval_only=args.eval_only)
    test_sources = [find_dataset(name) for name in test_names]
    train_sources = [find_dataset(name) for name in train_names]
    keep_empty = not cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    train_sets = [CocoDetection(source, keep_empty=keep_empty) for source in train_sources]
    test_sets = [CocoDetection(source, need_annotations=False) for source in test_sources]
    for dataset in (*train_sets, *test_sets):
        dataset.check_num_classes(cfg.MODEL.OneNet.NUM_CLASSES)
    for dataset in train_sets:
        dataset.check_images(skip_missing=cfg.DATALOADER.SKIP_UNREADABLE)
    for dataset in test_sets:
        dataset.check_images()
    for test_set in test_sets if train_sets else ():
        compare_classes(*_classes(train_sets[0]), *_classes(test_set))

    if local_rank() == 0 and needs_weights(cfg, args):
        # Fetched once a machine: other processes wait in join().
        locate_weights(cfg.MODEL.WEIGHTS)
    return _work(cfg, args, why, join(cfg, args), train_sets, test_sets)


def _work(
    cfg: Any,
    args: argparse.Namespace,
    why: str,
    fabric: Fabric,
    train_sets: list[CocoDetection],
    test_sets: list[CocoDetection],
) -> dict[str, float] | None:
    """Train or evaluate; every process runs this once all have met."""
    folder, again = Path(cfg.OUTPUT_DIR), started_again(fabric)
    with output_errors(cfg):
        setup_logging(folder, fabric.global_rank)
        if fabric.global_rank == 0:
            if not args.eval_only:
                remove_partial_files(folder)
            if not again:
                write_whole(folder / "config.yaml", dump(cfg).encode())
    logger.info(
        "Embedded engine (%s): %d process%s on %s, torch %s",
        why,
        fabric.world_size,
        "es" * (fabric.world_size > 1),
        _name(fabric.device),
        torch.__version__,
    )
    torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    make_deterministic(cfg)

    if not args.eval_only:
        if fabric.global_rank == 0:
            warn_of_idle_steps(cfg)
        if cfg.SOLVER.AMP.ENABLED:
            warn_of_bfloat16(fabric.device, "SOLVER.AMP.ENABLED False")
        resume = args.resume or fabric.broadcast(again and has_own_checkpoint(folder))
        if again:
            then = "goes on from its last checkpoint" if resume else "has none to go on from"
            logger.info("torchrun has started this run again, which %s", then)
        trainer = Trainer(cfg, fabric, train_sets=train_sets, test_sets=test_sets, resume=resume)
        return trainer.train()
    model = build_detector(cfg)
    load_to_evaluate(cfg, model, map(_classes, test_sets), load_weights)
    return evaluate_all(cfg, prepare_inference(cfg, model.to(fabric.device)), test_sets)


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    return "the CPU" if device.type == "cpu" else "the Mac's GPU (MPS)"


def _classes(dataset: CocoDetection) -> tuple[Path, list[str]]:
    return dataset.source.json_file, dataset.class_names


def _silence() -> None:
    """Hide warnings of libraries that the user cannot act on."""
    for module in ("lightning", "lightning_utilities", "torch.utils.data", "torch.distributed"):
        warnings.filterwarnings("ignore", module=rf"{module}(\.|$)")
