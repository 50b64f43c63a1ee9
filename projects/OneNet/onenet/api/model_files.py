"""Finding what belongs to a checkpoint: its config, in the file or beside it; shipped configs."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from onenet.checkpoints.changes import flat, nested
from onenet.checkpoints.files import read_checkpoint
from onenet.cli import DETECTRON2, EMBEDDED, choose_engine
from onenet.config.rules import BASELINES
from onenet.config.shipped import find_config
from onenet.config.yaml import read_with_bases
from onenet.errors import CheckpointError, ConfigError
from onenet.lightning.detectron2_keys import detectron2_only

CONFIG = "config.yaml"  # what a run writes beside its checkpoints
# How the names of keys begin that a model is built from, and detects and is evaluated with.
_NEEDED = (
    *("MODEL.", "TEST.", "DATASETS.", "DATALOADER.NUM_WORKERS"),
    *("INPUT.FORMAT", "INPUT.MIN_SIZE_TEST", "INPUT.MAX_SIZE_TEST"),
)
# Of the keys that only Detectron2 has, those that change what a model computes, but no shape of its
# weights; with the values that the embedded engine computes with.
_SILENT = {
    "MODEL.ANCHOR_GENERATOR.NAME": "DefaultAnchorGenerator",
    "MODEL.FPN.FUSE_TYPE": "sum",
    "MODEL.RESNETS.RES5_DILATION": 1,
}


@dataclass(frozen=True)
class ModelFiles:
    """The weights of a detector and the config that goes with them.

    Attributes:
        weights: as given: a path or an address.
        config: the config's file; ``None``: it was found with the checkpoint, as ``values``.
        values: the config's values by dotted key; ``None``: they are in ``config``.
        origin: where ``values`` come from, for messages.
        opts: overrides, ``KEY, VALUE, …``.
        engine: the engine's package.
        why: the reason for this engine, for the log.
    """

    weights: str
    config: Path | None
    values: Mapping[str, Any] | None
    origin: str
    opts: Sequence[Any]
    engine: str
    why: str

    def all_opts(self) -> list[Any]:
        """The overrides, and the weights as one of them."""
        return ["MODEL.WEIGHTS", self.weights, *self.opts]

    def with_opts(self, opts: Sequence[Any]) -> ModelFiles:
        """The same with more overrides."""
        return replace(self, opts=[*self.opts, *opts])

    @contextmanager
    def config_file(self) -> Iterator[str]:
        """The config as a file, which is there as long as the context.

        Raises:
            ConfigError: within the context, with the config's origin in place of the file.
        """
        if self.config is not None:
            yield str(self.config)
            return
        with TemporaryDirectory(prefix="onenet-") as folder:
            file = Path(folder, CONFIG)
            file.write_text(_as_yaml(self.values or {}, self.origin), encoding="utf-8")
            try:
                yield str(file)
            except ConfigError as error:
                if str(file) not in str(error):
                    raise
                told = str(error).replace(str(file), self.origin)
                raise ConfigError(
                    f"{told}; or give another config (config=, --config-file)"
                ) from error


def find_model(
    weights: str, config: str | Path | None, engine: str, opts: Sequence[Any]
) -> ModelFiles:
    """Choose an engine, and find the config that belongs to a checkpoint.

    Args:
        weights: path or address of a checkpoint.
        config: a YAML file, or the name of one that comes with the package; ``None``: the one in
            the checkpoint, or ``config.yaml`` beside it.
        engine: see :func:`onenet.cli.choose_engine`.
        opts: overrides.

    Raises:
        CheckpointError: no such file, it cannot be read, or no config is found.
        ConfigError: the config does not exist, or the engine cannot run it.
    """
    package, why = choose_engine(engine)
    if config is not None:
        return ModelFiles(weights, find_config(config), None, str(config), opts, package, why)
    values, origin = _config_of(weights, package)
    name = str(values.get("MODEL.META_ARCHITECTURE", ""))
    if name.startswith(BASELINES):
        library = name.partition(".")[0]
        if engine == "detectron2":
            raise ConfigError(f"{origin} is of {library}'s detectors: engine='lightning'")
        package, why = EMBEDDED, f"a detector of {library}"
    values = _for_engine(values, package, origin)
    return ModelFiles(weights, None, values, origin, opts, package, why)


def _locate(weights: str, package: str) -> Path:
    if package == DETECTRON2:
        return Path(importlib.import_module(f"{DETECTRON2}.weights").fetch_weights(weights))
    return importlib.import_module("onenet.checkpoints.weights").locate_weights(weights)


def _config_of(weights: str, package: str) -> tuple[dict[str, Any], str]:
    path = _locate(weights, package)
    content = read_checkpoint(path)
    config = content.get("config")
    if isinstance(config, Mapping) and all(isinstance(key, str) for key in config):
        return dict(config), f"the config in {path}"
    beside = path.with_name(CONFIG)
    if not beside.is_file():
        raise CheckpointError(
            f"{weights} holds no config, and there is no {CONFIG} beside it, as in the folder of a "
            "run: give its config (config=, or --config-file with --opts MODEL.WEIGHTS), "
            "such as onenet.res50.dcn.yaml"
        )
    values: dict[str, Any] = {}
    for _, part in read_with_bases(beside):
        values |= flat(part)
    return values, str(beside)


def _for_engine(values: Mapping[str, Any], package: str, origin: str) -> dict[str, Any]:
    """The values that an engine takes of a config that either engine may have written."""
    known = flat(importlib.import_module(f"{package}.config").get_cfg())
    kept = {}
    for key, value in values.items():
        if not key.startswith(_NEEDED):
            continue
        foreign = key not in known and (
            detectron2_only(key) or key.startswith(("MODEL.TORCHVISION.", "MODEL.TRANSFORMERS."))
        )
        if foreign and key in _SILENT and repr(value) != repr(_SILENT[key]):
            raise ConfigError(
                f"{origin}: {key} is {value!r}, which Detectron2 alone honours: "
                "engine='detectron2', where Detectron2 is installed"
            )
        if not foreign:
            kept[key] = value
    return kept


def _as_yaml(values: Mapping[str, Any], origin: str) -> str:
    try:
        return yaml.safe_dump(nested(values))
    except (yaml.YAMLError, AttributeError, TypeError, RecursionError) as error:
        # Whoever wrote the file can put anything there that a checkpoint may hold.
        raise CheckpointError(f"{origin} is no config: {error}") from error
