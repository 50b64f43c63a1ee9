"""Which config a checkpoint belongs to, by the names and shapes of its arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onenet.checkpoints.branch import leave_out_branch
from onenet.checkpoints.files import read_checkpoint
from onenet.checkpoints.weights import AVERAGED, CLASS_LAYERS, check_fit
from onenet.errors import CheckpointError, OneNetError
from onenet.lightning.build import build_detector
from onenet.lightning.config import load_cfg


@dataclass(frozen=True)
class Recognised:
    """A config that a checkpoint fits.

    Attributes:
        classes: how many the checkpoint has.
        opts: overrides without which it does not fit: another number of classes.
        datasets: ``DATASETS.TEST`` of the config.
    """

    config: Path
    classes: int
    opts: tuple[str, ...]
    datasets: tuple[str, ...]


def recognise(path: Path, configs: Sequence[Path]) -> Recognised:
    """Find the config of a checkpoint; among several, one that fits without overrides.

    Args:
        path: a checkpoint of a whole detector.
        configs: of OneNet models; the first that fits is taken.

    Raises:
        CheckpointError: the file cannot be read, or fits none of them; says what it lacks of the
            nearest, and which configs cannot be built here.
    """
    state = _state(path)
    fitting: list[Recognised] = []
    nearest: tuple[int, Path, dict[str, Tensor]] | None = None
    broken = []
    for config in configs:
        try:
            cfg, own = model_of(config)
        except (OneNetError, ImportError) as error:  # an optional package is missing
            broken.append(f"{config.name} cannot be built here ({error})")
            continue
        own, theirs = dict(own), dict(state)
        leave_out_branch(own, theirs)
        different = _differences(own, theirs)
        if not different:
            return Recognised(config, cfg.MODEL.OneNet.NUM_CLASSES, (), tuple(cfg.DATASETS.TEST))
        count = _other_classes(own, theirs, different, cfg.MODEL.OneNet.NUM_CLASSES)
        if count is not None:
            opts = ("MODEL.OneNet.NUM_CLASSES", str(count))
            fitting.append(Recognised(config, count, opts, tuple(cfg.DATASETS.TEST)))
        elif nearest is None or len(different) < nearest[0]:
            nearest = len(different), config, own
    if fitting:
        return fitting[0]
    if nearest is None:
        raise CheckpointError("; ".join(broken) or "there are no configs to compare with")
    try:
        check_fit(path, nearest[2], state, set())
    except CheckpointError as error:
        lines = str(error).splitlines()[1:]
        others = "".join(f"\n  {line}" for line in broken)
        raise CheckpointError(
            "\n".join([f"The nearest, {nearest[1].name}, differs:", *lines]) + others
        ) from error
    raise AssertionError(f"{path} fits {nearest[1]}")


def model_of(config: Path) -> tuple[Any, dict[str, Tensor]]:
    """A config, and the arrays of its model by name, without their values."""
    cfg = load_cfg(config, ["MODEL.DEVICE", "cpu"])
    with torch.device("meta"):
        return cfg, _counted(build_detector(cfg).state_dict())


def _state(path: Path) -> dict[str, Tensor]:
    """The arrays that :func:`~onenet.checkpoints.weights.load_weights` would load."""
    content = read_checkpoint(path)
    averaged = content.get(AVERAGED)
    if isinstance(averaged, Mapping) and "model" in averaged:
        content = averaged
    return _counted(content["model"])


def _counted(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: v for name, v in state.items() if not name.endswith("num_batches_tracked")}


def _differences(own: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> set[str]:
    """Names that only one of two models has, or that have another shape in each."""
    return {
        name
        for name in {*own, *theirs}
        if name not in own or name not in theirs or own[name].shape != theirs[name].shape
    }


def _other_classes(
    own: Mapping[str, Tensor], theirs: Mapping[str, Tensor], different: set[str], classes: int
) -> int | None:
    """The number of classes with which a checkpoint would fit; ``None``: with none."""
    counts = set()
    for name in different:
        mine, other = own.get(name), theirs.get(name)
        if mine is None or other is None or not name.startswith(CLASS_LAYERS):
            return None
        rows = mine.shape[0] // classes  # a class has one for each anchor of a point
        if mine.shape[1:] != other.shape[1:] or other.ndim == 0 or other.shape[0] % rows:
            return None
        counts.add(other.shape[0] // rows)
    return counts.pop() if len(counts) == 1 else None
