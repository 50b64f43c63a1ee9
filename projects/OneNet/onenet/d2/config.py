"""A Detectron2 config with OneNet's keys; nothing in its files is ever executed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.config import get_cfg as detectron2_cfg

from onenet.config.backbone import choose_weights
from onenet.config.device import choose_device
from onenet.config.keys import add_onenet_config
from onenet.config.rules import BASELINES, check_common
from onenet.config.yaml import read_with_bases
from onenet.errors import ConfigError, OneNetError


def get_cfg() -> CfgNode:
    """Detectron2's defaults, OneNet's keys and its meta-architecture."""
    cfg = detectron2_cfg()
    add_onenet_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "OneNet"
    return cfg


def load_cfg(config_file: str | Path, opts: Sequence[str] = ()) -> CfgNode:
    """Defaults, then the file with its bases, then the overrides; not frozen.

    ``MODEL.DEVICE`` becomes the CPU, with a line in the log, where there is no CUDA.

    Raises:
        ConfigError: says which file and key is wrong, and what to write.
    """
    cfg = get_cfg()
    source = str(config_file)
    try:
        for path, values in read_with_bases(Path(config_file)):
            source = str(path)
            _refuse_baseline(_meta_architecture(values), source)
            cfg.merge_from_other_cfg(CfgNode(values))
        source = "command line"
        cfg.merge_from_list(list(opts))
        _refuse_baseline(str(cfg.MODEL.META_ARCHITECTURE), source)
    except ConfigError:
        raise
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
        # yacs has no error class of its own: it raises any of these for a wrong key or value.
        raise ConfigError(f"{source}: {error.args[0] if error.args else error}") from error
    if cfg.VERSION != get_cfg().VERSION:
        raise ConfigError(
            f"{config_file}: VERSION is {cfg.VERSION}; expected {get_cfg().VERSION}, the version "
            "of Detectron2's config format"
        )
    check_common(cfg)
    choose_weights(cfg)
    cfg.MODEL.DEVICE = str(choose_device(cfg))
    cfg.OUTPUT_DIR = os.path.expanduser(cfg.OUTPUT_DIR)
    return cfg


def without_branch(cfg: CfgNode) -> CfgNode:
    """The same config without the one-to-many branch, for a model that only detects."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.OneNet.AUX.ENABLED = False
    return cfg


@contextmanager
def config_errors() -> Iterator[None]:
    """Turn a constructor's ``ValueError`` into a ``ConfigError``."""
    try:
        yield
    except OneNetError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _meta_architecture(values: dict[str, Any]) -> str:
    model = values.get("MODEL")
    return str(model.get("META_ARCHITECTURE", "")) if isinstance(model, dict) else ""


def _refuse_baseline(meta_architecture: str, source: str) -> None:
    """Raise for a detector of another library, rather than for the keys that only those have."""
    if meta_architecture.startswith(BASELINES):
        raise ConfigError(
            f"{source}: MODEL.META_ARCHITECTURE {meta_architecture} is the embedded engine's: "
            "--engine lightning. Detectron2 has its own RetinaNet, FCOS and GeneralizedRCNN, with "
            "config files of their own, and detrex is its collection of DETRs"
        )
