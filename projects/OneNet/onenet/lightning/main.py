"""The embedded engine's program: set up, then train or evaluate."""

from __future__ import annotations

import argparse
import logging
import os
import time
import warnings
from pathlib import Path
from typing import Any, NoReturn

import torch
from lightning.fabric import Fabric

from onenet.checkpoints.files import find_checkpoints
from onenet.checkpoints.weights import load_weights, locate_weights
from onenet.cli import end_with, import_files
from onenet.config.build import prepare_inference
from onenet.config.device import make_deterministic
from onenet.data.dataset import CocoDetection
from onenet.data.sources import compare_classes, find_dataset
from onenet.errors import ConfigError, LostProcessError, OneNetError, WriteError
from onenet.files import remove_partial_files, write_whole
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
PATIENCE = 5.0  # seconds in which another process may be the one that tells what failed


def run(args: argparse.Namespace, why: str) -> dict[str, float] | None:
    """Train or evaluate as the command line says (:func:`onenet.cli.training_parser`).

    Args:
        why: this engine was chosen; for the log.

    Returns:
        On rank 0 the metrics of the last evaluation, if there was one; ``None`` where processes
        were started for it.

    Raises:
        SystemExit: 2, after one line that says what to mend, where the user's files, values or
            weights are at fault; 1 where training diverged or its result cannot be written; 130
            after Ctrl-C, 143 after SIGTERM.
    """
    try:
        with stop_at_once():
            return _run(args, why)
    except OneNetError as error:
        _exit(error, args.traceback)
    except KeyboardInterrupt as error:
        if int(os.environ.get("LOCAL_RANK", 0)) > 0:
            time.sleep(PATIENCE)
            end_stopped(error, None)
        end_stopped(error, lambda line: logger.warning(line, extra={"on_bar": True}))
    except Exception as error:
        if not is_lost_process(error):
            raise
        # Who started the processes tells which one it was, and ends this one.
        time.sleep(PATIENCE)
        lost = LostProcessError("cannot go on: another of the processes has ended")
        lost.__cause__ = error
        _exit(lost, args.traceback)


def _exit(error: OneNetError, show_traceback: bool) -> NoReturn:
    # A DataLoader puts the traceback of its worker before the message.
    message = str(error).rpartition(f"{type(error).__name__}: ")[2].strip()
    if int(os.environ.get("LOCAL_RANK", 0)) > 0:
        # Where all fail alike, the first process says so, and its end is that of this one.
        time.sleep(PATIENCE)
    logger.error("error: %s", message, extra={"on_bar": True})  # for log.txt
    try:
        end_with(error, show_traceback, message)
    finally:
        leave(error.exit_status)


def _run(args: argparse.Namespace, why: str) -> dict[str, float] | None:
    _silence()
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    setup_logging(None, rank=local_rank)
    import_files(args.imports)
    cfg = load_cfg(args.config_file, args.opts)
    check_processes(cfg, args)
    if must_start(args):
        start(args, run, why)
        return None
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
    for test_set in test_sets if train_sets else ():
        _compare_classes(train_sets[0].source.json_file, train_sets[0].class_names, test_set)

    if local_rank == 0 and cfg.MODEL.WEIGHTS:
        if not args.resume or not find_checkpoints(Path(cfg.OUTPUT_DIR)):
            # What must be fetched is fetched once a machine: other processes wait in join().
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
    """What every process does once they have met."""
    folder, again = Path(cfg.OUTPUT_DIR), started_again(fabric)
    try:
        setup_logging(folder, fabric.global_rank)
        if fabric.global_rank == 0:
            if not args.eval_only:
                remove_partial_files(folder)
            if not again:
                write_whole(folder / "config.yaml", dump(cfg).encode())
    except (OSError, WriteError) as error:
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
    make_deterministic(cfg)

    if not args.eval_only:
        resume = args.resume or fabric.broadcast(again and has_own_checkpoint(folder))
        if again:
            then = "goes on from its last checkpoint" if resume else "has none to go on from"
            logger.info("torchrun has started this run again, which %s", then)
        trainer = Trainer(cfg, fabric, train_sets=train_sets, test_sets=test_sets, resume=resume)
        return trainer.train()
    model = build_detector(cfg)
    if cfg.MODEL.WEIGHTS:
        extras = load_weights(model, cfg.MODEL.WEIGHTS, detector=True)
        for test_set in test_sets:
            _compare_classes(cfg.MODEL.WEIGHTS, extras.get("class_names", []), test_set)
    else:
        logger.warning("MODEL.WEIGHTS is empty: evaluating a model with random weights")
    return evaluate_all(cfg, prepare_inference(cfg, model.to(fabric.device)), test_sets)


def _compare_classes(trained: object, names: list[str], test_set: CocoDetection) -> None:
    compare_classes(trained, names, test_set.source.json_file, test_set.class_names)


def _silence() -> None:
    """Hide warnings of libraries that the user cannot act on."""
    for module in ("lightning", "lightning_utilities", "torch.utils.data", "torch.distributed"):
        warnings.filterwarnings("ignore", module=rf"{module}(\.|$)")
