"""The keys of ``TEST`` that make inference fast, for both engines."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from onenet.detector import PRECISIONS
from onenet.errors import ConfigError


def add_inference_config(cfg: Any) -> None:
    """Add the keys to a Detectron2-style config, in place; see :func:`prepare_inference`."""
    # Fold batch norms into convolutions and lay maps out as channels_last.
    cfg.TEST.FUSE = True
    # "float32", "bfloat16", or on CUDA "float16".
    cfg.TEST.PRECISION = "float32"
    # Compile every size of a batch when it is first met (CUDA graphs on CUDA): for images of one
    # size or of a few.
    cfg.TEST.COMPILE = False
    # Most images that go through the network together, all of one padded size, on each process;
    # 0: 8 on CUDA, and 1 on the CPU, which is faster with its maps in the cache.
    cfg.TEST.IMS_PER_BATCH = 0


def check_inference(cfg: Any) -> None:
    """Raise ``ConfigError`` unless the values are known."""
    if cfg.TEST.PRECISION not in PRECISIONS:
        raise ConfigError(
            f"TEST.PRECISION must be one of {', '.join(PRECISIONS)}, got {cfg.TEST.PRECISION!r}"
        )
    if cfg.TEST.IMS_PER_BATCH < 0:
        raise ConfigError(f"TEST.IMS_PER_BATCH must be 0 or more, got {cfg.TEST.IMS_PER_BATCH}")


def images_per_batch(cfg: Any) -> int:
    """What ``TEST.IMS_PER_BATCH`` says, or stands for."""
    on_cuda = torch.cuda.is_available() and cfg.MODEL.DEVICE != "cpu"
    return cfg.TEST.IMS_PER_BATCH or (8 if on_cuda else 1)


def prepare_inference(cfg: Any, model: nn.Module) -> nn.Module:
    """Do to a model on its device what ``TEST.FUSE``, ``PRECISION`` and ``COMPILE`` ask for.

    For models that will not be trained: predictors and ``--eval-only``, not the evaluations of a
    training. Models other than OneNet's stay as they are.

    Returns:
        The model itself, in evaluation mode.

    Raises:
        ConfigError: a precision that the device has not, or keys that the model does not honour.
    """
    test = cfg.TEST
    if not hasattr(model, "prepare_inference"):
        if test.PRECISION != "float32" or test.COMPILE:
            raise ConfigError(
                "TEST.PRECISION and TEST.COMPILE are OneNet's; leave them out for "
                f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE}"
            )
        return model.eval()
    try:
        return model.prepare_inference(
            fuse=test.FUSE, precision=test.PRECISION, compile=test.COMPILE
        )
    except ValueError as error:
        raise ConfigError(f"TEST.PRECISION: {error}") from error
