"""The embedded engine as a program: set up, then train or evaluate."""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

import torch
from lightning.fabric import Fabric

from onenet.checkpoints.weights import load_weights, locate_weights
from onenet.config.build import prepare_inference
from onenet.config.device import make_deterministic, warn_of_bfloat16
from onenet.config.imports import import_files
from onenet.config.rules import warn_of_idle_steps
from onenet.data.augment.build import build_augmentations
from onenet.data.dataset import CocoDetection
from onenet.data.sources import compare_classes, find_dataset
from onenet.errors import LostProcessError, OneNetError, end_with
from onenet.training.launchers import is_one_of_several, local_rank, take_environment
from onenet.training.run_folder import RunFolder
from onenet.training.setup import (
    check_folder,
    check_report,
    data_sets,
    load_to_evaluate,
    needs_weights,
    output_errors,
)
from onenet.training.signals import end_stopped, stop_at_once

from .build import build_detector
from .config import dump, load_cfg
from .launch import (
    check_processes,
    is_lost_process,
    join,
    launch_name,
    leave,
    must_start,
    start,
    started_again,
)
from .monitor import setup_logging
from .test_sets import evaluate_all, report_all
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


def run_here(args: argparse.Namespace, why: str) -> dict[str, float] | None:
    """:func:`run` in a process that goes on afterwards: raises its errors, and starts no others."""
    with stop_at_once():
        return _run(args, why)


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
    check_report(args)
    if not args.eval_only and not is_one_of_several():
        check_folder(cfg, args)  # before work that may take minutes
    if not args.eval_only:
        build_augmentations(cfg)  # refuses wrong ones
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
    folder, first = RunFolder(Path(cfg.OUTPUT_DIR)), fabric.global_rank == 0
    with ExitStack() as stack:
        with output_errors(cfg):
            if first:
                stack.enter_context(folder.held())
            resume, again = _check(cfg, args, fabric, folder)
            setup_logging(folder.path, fabric.global_rank)
        _announce(why, fabric)
        if again:
            logger.info("torchrun has started this run again, which goes on from what it has saved")
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
        make_deterministic(cfg)
        if not args.eval_only:
            if first:
                warn_of_idle_steps(cfg)
            if cfg.SOLVER.AMP.ENABLED:
                warn_of_bfloat16(fabric.device, "SOLVER.AMP.ENABLED False")
            trainer = Trainer(
                cfg,
                fabric,
                train_sets=train_sets,
                test_sets=test_sets,
                run_folder=folder,
                resume=resume,
            )
            with output_errors(cfg):
                if first:
                    folder.begin(dump(cfg))
            return trainer.train()
        model = build_detector(cfg)
        load_to_evaluate(cfg, model, map(_classes, test_sets), load_weights)
        model = prepare_inference(cfg, model.to(fabric.device))
        metrics = evaluate_all(cfg, model, test_sets)
        if first:
            folder.note_evaluation(dump(cfg))
            if args.report:
                report_all(cfg, test_sets)
        return metrics


def _check(
    cfg: Any, args: argparse.Namespace, fabric: Fabric, folder: RunFolder
) -> tuple[bool, bool]:
    """Check the folder of a training.

    Returns:
        Whether to resume the run in it, and whether that is since ``torchrun`` has restarted it.

    Raises:
        ConfigError: see :meth:`RunFolder.check`.
    """
    if args.eval_only:
        return False, False
    folder.launch = launch_name()
    # If the start before ended before its run began, this one is like the first.
    again = started_again(fabric) and folder.was_launched_by(folder.launch)
    again = fabric.broadcast(again)
    resume = args.resume or again
    if fabric.global_rank == 0:
        overwrite = args.overwrite and not again
        folder.check(resume=resume, overwrite=overwrite, weights=cfg.MODEL.WEIGHTS)
    return resume, again


def _announce(why: str, fabric: Fabric) -> None:
    logger.info(
        "Embedded engine (%s): %d process%s on %s, torch %s",
        why,
        fabric.world_size,
        "es" * (fabric.world_size > 1),
        _name(fabric.device),
        torch.__version__,
    )


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
