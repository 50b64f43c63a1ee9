"""What happens before training or evaluation begins, whichever engine runs."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from onenet.checkpoints.series import find_checkpoints
from onenet.data.sources import compare_classes
from onenet.errors import ConfigError, WriteError

from .run_folder import RunFolder

logger = logging.getLogger(__name__)


def data_sets(cfg: Any, *, eval_only: bool) -> tuple[list[str], list[str]]:
    """The names of the data sets to train on and of those to test on.

    Raises:
        ConfigError: there is nothing to do.
    """
    train_sets = [] if eval_only else list(cfg.DATASETS.TRAIN)
    test_sets = list(cfg.DATASETS.TEST)
    if eval_only and not test_sets:
        raise ConfigError("DATASETS.TEST is empty: name what to evaluate on")
    if not eval_only and not train_sets:
        raise ConfigError("DATASETS.TRAIN is empty: name what to train on")
    return train_sets, test_sets


def check_report(args: argparse.Namespace) -> None:
    """Raise ``ConfigError`` if a report is wanted of a training."""
    if args.report and not args.eval_only:
        raise ConfigError(
            "--report is about an evaluation: train first, then give --eval-only --report with "
            "MODEL.WEIGHTS"
        )


def check_gpus(processes: int) -> None:
    """Raise ``ConfigError`` if this machine has fewer GPUs than processes."""
    available = torch.cuda.device_count()
    if processes > available:
        raise ConfigError(f"--num-gpus {processes}: this machine has {available} CUDA device(s)")


def check_meeting_place(args: argparse.Namespace) -> None:
    """Raise ``ConfigError`` unless processes on several machines know where to meet."""
    if args.num_machines > 1 and args.dist_url == "auto":
        raise ConfigError(
            "--dist-url auto works on one machine; for several give tcp://HOST:PORT of the "
            "first one on each"
        )


def check_folder(cfg: Any, args: argparse.Namespace) -> None:
    """Raise ``ConfigError`` if a training cannot start in ``OUTPUT_DIR``: see ``RunFolder.check``.

    The run checks it again when it holds the folder.
    """
    with output_errors(cfg):
        folder = RunFolder(Path(cfg.OUTPUT_DIR))
        folder.check(resume=args.resume, overwrite=args.overwrite, weights=cfg.MODEL.WEIGHTS)


def needs_weights(cfg: Any, args: argparse.Namespace) -> bool:
    """Whether the run loads ``MODEL.WEIGHTS``, as there is no checkpoint to resume from."""
    resumes = args.resume and not args.eval_only and find_checkpoints(Path(cfg.OUTPUT_DIR))
    return bool(cfg.MODEL.WEIGHTS and not resumes)


@contextmanager
def output_errors(cfg: Any) -> Iterator[None]:
    """Turn errors in preparing ``OUTPUT_DIR`` into a ``ConfigError``."""
    try:
        yield
    except (OSError, WriteError) as error:
        raise ConfigError(f"OUTPUT_DIR {cfg.OUTPUT_DIR} cannot be written: {error}") from error


def load_to_evaluate(
    cfg: Any,
    model: nn.Module,
    test_sets: Iterable[tuple[object, Sequence[str]]],
    load: Callable[..., dict[str, Any]],
) -> None:
    """Load ``MODEL.WEIGHTS`` for ``--eval-only``; warn if classes differ or there are no weights.

    Weights with the classes of the first test set in another order are mapped by name.

    Args:
        test_sets: the name of each, and its classes by label.
        load: the engine's :func:`~onenet.checkpoints.weights.load_weights`.

    Raises:
        CheckpointError: the weights are not this model's, or of a backbone only.
    """
    if not cfg.MODEL.WEIGHTS:
        logger.warning("MODEL.WEIGHTS is empty: evaluating a model with random weights")
        return
    test_sets = list(test_sets)
    options = {"detector": True, "class_names": test_sets[0][1]}
    trained = load(model, cfg.MODEL.WEIGHTS, **options).get("class_names", [])
    for name, classes in test_sets:
        compare_classes(cfg.MODEL.WEIGHTS, trained, name, classes)
