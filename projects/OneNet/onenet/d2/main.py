"""Detectron2's engine as a program: what ``train_net.py --engine detectron2`` runs."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import default_setup, launch
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ..checkpoint import CheckpointError, load_weights
from ..datasets import DatasetError
from ..yaml_files import ConfigError
from .config import load_cfg
from .datasets import check_classes, register_datasets
from .trainer import Trainer

_USERS = (ConfigError, DatasetError, CheckpointError)


def run(args: argparse.Namespace, why: str) -> None:
    """Train or evaluate as the command line says (:func:`onenet.cli.training_parser`).

    Args:
        why: this engine was chosen; for the log.

    Raises:
        SystemExit: 2, after one line, where the user's files or values are at fault.
    """
    try:
        cfg = load_cfg(args.config_file, args.opts)
        prepare(cfg, args)
        cfg.freeze()
        launch(
            work,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(cfg, args, why),
        )
    except _USERS as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def prepare(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Make the data sets known, and refuse what cannot work; for every process.

    Raises:
        ConfigError: several processes without CUDA, which Detectron2 cannot start.
        DatasetError: missing data, or another number of classes.
    """
    if args.num_gpus * args.num_machines > 1 and cfg.MODEL.DEVICE == "cpu":
        raise ConfigError(
            f"--num-gpus {args.num_gpus}: Detectron2 runs several processes on CUDA only; "
            "--engine lightning does on the CPU, too"
        )
    names = list(cfg.DATASETS.TEST) + ([] if args.eval_only else list(cfg.DATASETS.TRAIN))
    register_datasets(names)
    check_classes(names, cfg.MODEL.OneNet.NUM_CLASSES)


def work(cfg: CfgNode, args: argparse.Namespace, why: str) -> Any:
    """What every process does: evaluate, or train; returns the metrics."""
    prepare(cfg, args)
    default_setup(cfg, args)
    logger = setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="onenet")
    logger.info("Detectron2's engine: %s", why)
    if not args.eval_only:
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        return trainer.train()
    model = Trainer.build_model(cfg)
    if cfg.MODEL.WEIGHTS:
        load_weights(model, cfg.MODEL.WEIGHTS, detector=True)
    return Trainer.test(cfg, model)
