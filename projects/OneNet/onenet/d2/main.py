"""Detectron2's engine as a program: what ``train_net.py --engine detectron2`` runs."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import launch
from detectron2.evaluation import verify_results
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch.multiprocessing import ProcessExitedException

from onenet.config.build import prepare_inference
from onenet.config.device import make_deterministic
from onenet.config.imports import import_files
from onenet.config.rules import check_shares, warn_of_idle_steps
from onenet.data.augment.build import build_augmentations
from onenet.data.sources import check_same_classes
from onenet.errors import ConfigError, NonFiniteError, OneNetError, end_with
from onenet.evaluation.registry import choose_evaluator
from onenet.training.launchers import of_torchrun, take_environment
from onenet.training.run_folder import RunFolder
from onenet.training.setup import (
    check_folder,
    check_gpus,
    check_meeting_place,
    check_report,
    data_sets,
    load_to_evaluate,
    needs_weights,
    output_errors,
)
from onenet.training.signals import end_stopped, hand_on, stop_at_once

from .config import load_cfg, without_branch
from .datasets import (
    check_annotated,
    check_classes,
    check_images,
    class_names,
    register_datasets,
)
from .evaluation import report_all
from .setup import setup
from .trainer import Trainer, share_log
from .weights import fetch_weights, load_weights

logger = logging.getLogger("onenet")


def run(args: argparse.Namespace, why: str) -> None:
    """Train or evaluate as the command line says (:func:`onenet.cli.training_parser`).

    Args:
        why: the reason for this engine, for the log.

    Raises:
        SystemExit: 2 if the user's files, values or weights are wrong, after one line that says
            what to do; 1 if training diverged, its result cannot be written, or
            TEST.EXPECTED_RESULTS are missed; 130 after Ctrl-C, 143 after SIGTERM.
    """
    with _exit_codes(args.traceback):
        if not logger.handlers:  # until Detectron2's log is set up
            logger.addHandler(logging.StreamHandler(sys.stdout))
            logger.setLevel(logging.INFO)
        take_environment(args)
        cfg = _read_and_check(args)
        with hand_on() if args.num_gpus * args.num_machines > 1 else nullcontext():
            launch(
                work,
                args.num_gpus,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(cfg, args, why),
            )


def run_here(args: argparse.Namespace, why: str) -> dict[str, float]:
    """:func:`run` in a process that goes on afterwards: raises its errors, and starts no others.

    Returns:
        The metrics of the last evaluation by name, such as ``bbox/AP``.
    """
    setup_logger.cache_clear()  # it sets up each log once a process
    with stop_at_once():
        cfg = _read_and_check(args)
        try:
            metrics = _work(cfg, args, why)
        except FloatingPointError as error:
            raise _own(error) from error
    return {name: float(value) for name, value in flatten_results_dict(metrics or {}).items()}


def _read_and_check(args: argparse.Namespace) -> CfgNode:
    cfg = load_cfg(args.config_file, args.opts)
    check_report(args)
    prepare(cfg, args)
    if not args.eval_only:
        check_folder(cfg, args)
    # By one process: this takes a while, and all would find the same.
    if not args.eval_only:
        check_annotated(cfg.DATASETS.TRAIN)
        check_images(
            cfg.DATASETS.TRAIN,
            keep_empty=not cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
            skip_missing=cfg.DATALOADER.SKIP_UNREADABLE,
        )
    check_images(cfg.DATASETS.TEST)
    if needs_weights(cfg, args):
        fetch_weights(cfg.MODEL.WEIGHTS)  # once, not by every process
    cfg.freeze()
    return cfg


def _own(error: FloatingPointError) -> FloatingPointError:
    """Detectron2's own error as ours."""
    if isinstance(error, NonFiniteError):
        return error
    return NonFiniteError(str(error)).with_traceback(error.__traceback__)


@contextmanager
def _exit_codes(show_traceback: bool) -> Iterator[None]:
    try:
        with stop_at_once():
            yield
    except OneNetError as error:
        end_with(error, show_traceback)
    except FloatingPointError as error:
        end_with(_own(error), show_traceback)
    except ProcessExitedException as error:  # the process has said why
        raise SystemExit(error.exit_code or 1) from error
    except KeyboardInterrupt as error:
        end_stopped(error, logger.warning if comm.is_main_process() else None)


def prepare(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Register the data sets and refuse what cannot work; every process calls this.

    Raises:
        ConfigError: Detectron2 cannot honour a value here, or a file to import is missing.
        DatasetError: data is missing, or has another number of classes.
    """
    import_files(args.imports)
    _check_processes(cfg, args)
    choose_evaluator(cfg)
    if not args.eval_only:
        build_augmentations(cfg)  # refuses wrong ones
    for key, registry, name in (
        ("MODEL.META_ARCHITECTURE", META_ARCH_REGISTRY, cfg.MODEL.META_ARCHITECTURE),
        ("MODEL.BACKBONE.NAME", BACKBONE_REGISTRY, cfg.MODEL.BACKBONE.NAME),
    ):
        if name not in registry:
            choices = ", ".join(choice for choice, _ in registry)
            raise ConfigError(f"{key} must be one of {choices}, got {name!r}")
    train_sets, test_sets = data_sets(cfg, eval_only=args.eval_only)
    register_datasets((*train_sets, *test_sets))
    check_classes((*train_sets, *test_sets), cfg.MODEL.OneNet.NUM_CLASSES)
    if train_sets:
        check_same_classes((name, class_names(name)) for name in train_sets)


def _check_processes(cfg: CfgNode, args: argparse.Namespace) -> None:
    if of_torchrun() and int(os.environ["WORLD_SIZE"]) > 1:
        raise ConfigError(
            "torchrun has started this program, but Detectron2 starts its own processes: leave "
            "torchrun out and give --num-gpus. --engine lightning works with both"
        )
    processes = args.num_gpus * args.num_machines
    if processes > 1 and cfg.MODEL.DEVICE in ("cpu", "mps"):
        raise ConfigError(
            f"--num-gpus {args.num_gpus}: Detectron2 runs several processes on CUDA only; "
            "--engine lightning does on the CPU, too"
        )
    if processes > 1:
        check_gpus(args.num_gpus)
    check_meeting_place(args)
    if args.eval_only:
        return
    check_shares(cfg, processes)
    if cfg.SOLVER.AMP.ENABLED and cfg.MODEL.DEVICE in ("cpu", "mps"):
        raise ConfigError(
            "SOLVER.AMP.ENABLED: Detectron2 trains with it on CUDA only; --engine lightning does "
            "on the CPU, too"
        )


def work(cfg: CfgNode, args: argparse.Namespace, why: str) -> Any:
    """Evaluate or train, and return the metrics; every process runs this."""
    with _exit_codes(args.traceback):
        return _work(cfg, args, why)


def _work(cfg: CfgNode, args: argparse.Namespace, why: str) -> Any:
    folder, first = RunFolder(Path(cfg.OUTPUT_DIR)), comm.is_main_process()
    with ExitStack() as stack:
        prepare(cfg, args)
        with output_errors(cfg):
            if first:
                stack.enter_context(folder.held())
            if first and not args.eval_only:
                weights = cfg.MODEL.WEIGHTS
                folder.check(resume=args.resume, overwrite=args.overwrite, weights=weights)
            setup(cfg, args)
        make_deterministic(cfg)
        share_log()
        logger.info("Detectron2's engine (%s), torch %s", why, torch.__version__)
        if not args.eval_only:
            warn_of_idle_steps(cfg)
            trainer = Trainer(cfg, folder)
            trainer.resume_or_load(resume=args.resume)
            with output_errors(cfg):
                if first:
                    folder.begin(cfg.dump())
            return trainer.train()
        model = Trainer.build_model(without_branch(cfg))
        test_sets = ((name, class_names(name)) for name in cfg.DATASETS.TEST)
        load_to_evaluate(cfg, model, test_sets, load_weights)
        metrics = Trainer.test(cfg, prepare_inference(cfg, model))
        if first:
            folder.note_evaluation(cfg.dump())
            if args.report:
                report_all(cfg)
            verify_results(cfg, metrics)
        return metrics
