"""A Detectron2 config with OneNet's keys, from a file that is never executed."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.config import get_cfg as detectron2_cfg

from onenet.config.build import add_onenet_config
from onenet.config.yaml import read_with_bases
from onenet.errors import ConfigError, OneNetError

logger = logging.getLogger(__name__)


def get_cfg() -> CfgNode:
    """Detectron2's defaults, OneNet's keys and its meta-architecture."""
    cfg = detectron2_cfg()
    add_onenet_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "OneNet"
    return cfg


def load_cfg(config_file: str | Path, opts: Sequence[str] = ()) -> CfgNode:
    """Defaults, then the file with its bases, then the overrides; not frozen.

    ``MODEL.DEVICE`` becomes the CPU, with a line in the log, where CUDA is asked for in vain.

    Raises:
        ConfigError: says which file and key is wrong.
    """
    cfg = get_cfg()
    source = str(config_file)
    try:
        for path, values in read_with_bases(Path(config_file)):
            source = str(path)
            _refuse_peer(_meta_architecture(values), source)
            cfg.merge_from_other_cfg(CfgNode(values))
        source = "command line"
        cfg.merge_from_list(list(opts))
        _refuse_peer(str(cfg.MODEL.META_ARCHITECTURE), source)
    except ConfigError:
        raise
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
        # yacs has no error of its own: what it finds wrong in a key or value comes as any of them.
        raise ConfigError(f"{source}: {error.args[0] if error.args else error}") from error
    if cfg.VERSION != get_cfg().VERSION:
        raise ConfigError(
            f"{config_file}: VERSION is {cfg.VERSION}; expected {get_cfg().VERSION}, the version "
            "of Detectron2's config format"
        )
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.info(
            "MODEL.DEVICE is %s, but there is no CUDA: running on the CPU", cfg.MODEL.DEVICE
        )
        cfg.MODEL.DEVICE = "cpu"
    return cfg


@contextmanager
def config_errors() -> Iterator[None]:
    """What a constructor says of a value becomes a ``ConfigError``."""
    try:
        yield
    except OneNetError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _meta_architecture(values: dict[str, Any]) -> str:
    model = values.get("MODEL")
    return str(model.get("META_ARCHITECTURE", "")) if isinstance(model, dict) else ""


def _refuse_peer(meta_architecture: str, source: str) -> None:
    """Raise for a detector of torchvision, before keys that only those have are found unknown."""
    if meta_architecture.startswith("torchvision."):
        raise ConfigError(
            f"{source}: MODEL.META_ARCHITECTURE {meta_architecture} is the embedded engine's: "
            "--engine lightning. Detectron2 has its own RetinaNet, FCOS and GeneralizedRCNN, with "
            "config files of their own"
        )
