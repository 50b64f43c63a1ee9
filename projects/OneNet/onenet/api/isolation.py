"""A run within somebody else's process, which it leaves as it was."""

from __future__ import annotations

import logging
import os
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

LOGGERS = ("onenet", "lightning", "lightning.fabric", "lightning.pytorch", "detectron2", "fvcore")


@contextmanager
def unchanged_process() -> Iterator[None]:
    """Undo what a run changes: environment, log handlers, filters, seeds and torch's settings.

    Not for several threads that run at a time: these are settings of the whole process.
    """
    environment = dict(os.environ)
    logs = [logging.getLogger(name) for name in LOGGERS]
    before = [(log.level, log.propagate, log.handlers[:]) for log in logs]
    seeds = random.getstate(), np.random.get_state()
    cudnn = torch.backends.cudnn
    settings = cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32
    precision, threads = torch.get_float32_matmul_precision(), torch.get_num_threads()
    strict = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices), warnings.catch_warnings():
            yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        for log, (level, propagate, handlers) in zip(logs, before, strict=True):
            for handler in log.handlers[:]:
                if handler not in handlers:
                    handler.close()
            log.setLevel(level)
            log.propagate, log.handlers[:] = propagate, handlers
        random.setstate(seeds[0])
        np.random.set_state(seeds[1])
        cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32 = settings
        torch.set_float32_matmul_precision(precision)
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(strict, warn_only=warn_only)
