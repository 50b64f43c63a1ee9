"""What a resumed run may change in its config, and what it may not; the same for both engines."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from onenet.data.sources import shortened
from onenet.errors import CheckpointError, OneNetError

logger = logging.getLogger(__name__)

# A name covers everything below it, and is followed by what it leaves out.
MAY_CHANGE: dict[str, tuple[str, ...]] = {
    "CUDNN_BENCHMARK": (),
    "CUDNN_DETERMINISTIC": (),
    "DATALOADER.NUM_WORKERS": (),
    "DATALOADER.SKIP_UNREADABLE": (),
    "DATASETS": (),  # the same classes and as many images, perhaps in another place
    "FLOAT32_PRECISION": (),
    "GLOBAL": (),
    "HOOKS": (),
    "INPUT": ("INPUT.FORMAT",),
    "LOGGERS": (),
    "MODEL.CenterNet.OFFSET_WEIGHT": (),
    "MODEL.CenterNet.PEAK_KERNEL": (),
    "MODEL.CenterNet.SIZE_WEIGHT": (),
    "MODEL.DEVICE": (),
    "MODEL.OneNet.ALPHA": (),
    "MODEL.OneNet.CLASS_COST": (),
    "MODEL.OneNet.CLASS_WEIGHT": (),
    "MODEL.OneNet.GAMMA": (),
    "MODEL.OneNet.GIOU_COST": (),
    "MODEL.OneNet.GIOU_WEIGHT": (),
    "MODEL.OneNet.INFERENCE_HEADS": (),
    "MODEL.OneNet.L1_COST": (),
    "MODEL.OneNet.L1_WEIGHT": (),
    "MODEL.OneNet.LOCATION_COST": (),
    "MODEL.OneNet.MATCHER": (),
    "MODEL.OneNet.NMS": (),
    "MODEL.OneNet.RULES": (),
    "MODEL.TORCHVISION": (),
    "MODEL.WEIGHTS": (),
    "MODEL.YOLOv1.COORD_WEIGHT": (),
    "MODEL.YOLOv1.DROPOUT": (),
    "MODEL.YOLOv1.NMS_THRESH": (),
    "MODEL.YOLOv1.NOOBJ_WEIGHT": (),
    "MODEL_EMA.DECAY": (),
    "OUTPUT_DIR": (),
    "SOLVER.ACCUMULATE": (),
    "SOLVER.AMP": (),
    "SOLVER.BACKBONE_MULTIPLIER": (),
    "SOLVER.BASE_LR": (),
    "SOLVER.BASE_LR_END": (),
    "SOLVER.CHECKPOINT_KEEP": (),
    "SOLVER.CHECKPOINT_PERIOD": (),
    "SOLVER.CLIP_GRADIENTS": (),
    "SOLVER.EARLY_STOP": (),
    "SOLVER.GAMMA": (),
    "SOLVER.LR_SCHEDULER_NAME": (),
    "SOLVER.MAX_ITER": (),
    "SOLVER.MOMENTUM": (),
    "SOLVER.NUM_DECAYS": (),
    "SOLVER.RESCALE_INTERVAL": (),
    "SOLVER.SKIP_NONFINITE": (),
    "SOLVER.STEPS": (),
    "SOLVER.WARMUP_FACTOR": (),
    "SOLVER.WARMUP_ITERS": (),
    "SOLVER.WARMUP_METHOD": (),
    "SOLVER.WEIGHT_DECAY": (),
    "TEST": (),
    "VIS_PERIOD": (),
}
# Keys that decide which images an iteration sees. Only an engine whose stream of images goes on
# after an interruption holds a run to them.
STREAM = ("DATALOADER", "SOLVER.IMS_PER_BATCH")
# Keys that say where a run is, and not what it does.
_PLACES = ("OUTPUT_DIR",)


def flat(node: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves of a config by dotted key; tuples are lists, as in YAML and in a checkpoint."""
    return dict(_leaves(node, ""))


def _leaves(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", as_lists(value)


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Sections within each other from values by dotted key: the inverse of :func:`flat`."""
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *sections, leaf = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[leaf] = value
    return tree


def as_lists(value: Any) -> Any:
    """Turn tuples into lists at any depth."""
    return [as_lists(one) for one in value] if isinstance(value, list | tuple) else value


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Keys whose values differ, each with both; keys of ``old`` alone are left out.

    Args:
        old, new: see :func:`flat`.
    """
    # Compares text, because NaN never equals itself.
    return {
        key: (old[key], value)
        for key, value in new.items()
        if key in old and repr(old[key]) != repr(value)
    }


def may_change(key: str, *, stream: bool) -> bool:
    """Whether a resumed run may have another value of a key.

    Args:
        stream: the images go on where the run was interrupted.
    """
    if not stream and _covers(STREAM, key):
        return True
    return any(_covers([name], key) and not _covers(less, key) for name, less in MAY_CHANGE.items())


def _covers(names: Sequence[str], key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def compare(
    old: Mapping[str, Any], new: Mapping[str, Any], *, path: Path, done: int, stream: bool
) -> None:
    """Compare the config of a checkpoint's run with the one to resume it with; log each change.

    Args:
        old, new: see :func:`flat`.
        path: of the checkpoint.
        done: iterations.
        stream: see :func:`may_change`.

    Raises:
        CheckpointError: names the keys that may not change, and the way out.
    """
    changed = differences(old, new)
    refused = [
        f"{key} is {now!r}, its run had {before!r}"
        for key, (before, now) in changed.items()
        if not may_change(key, stream=stream)
    ]
    if new["SOLVER.MAX_ITER"] < done:
        refused.append(
            f"SOLVER.MAX_ITER is {new['SOLVER.MAX_ITER']}, but {done} iterations are done"
        )
    if refused:
        raise refusal(path, "; ".join(refused))
    for key, (before, now) in changed.items():
        if key == "MODEL.WEIGHTS":
            logger.info("MODEL.WEIGHTS has no effect on a run that is resumed from %s", path)
        elif key not in _PLACES:
            logger.info("Changed from iteration %d on: %s %r -> %r", done + 1, key, before, now)


def compare_data(content: Mapping[str, Any], path: Path, now: Mapping[str, Any]) -> None:
    """Compare the training data of a checkpoint's run with that to resume it with.

    Args:
        content: of the checkpoint.
        path: of the checkpoint.
        now: ``class_names`` and perhaps ``images``, the number of training images, as a checkpoint
            of the run to come has them.

    Raises:
        CheckpointError: the classes or the number of images differ.
    """
    for name, what in (("class_names", "classes"), ("images", "images")):
        before = content.get(name)
        if name in now and before and before != now[name]:
            one, other = (shortened(v) if isinstance(v, list) else v for v in (now[name], before))
            raise refusal(path, f"DATASETS.TRAIN has other {what}: {one}; its run had {other}")


def saved_config(
    content: Mapping[str, Any], path: Path, load: Callable[[Path], Mapping[str, Any]]
) -> dict[str, Any] | None:
    """The config of the run that wrote a checkpoint, as :func:`flat` gives it.

    A checkpoint of an earlier version does not hold it: then it is read from the run's
    ``config.yaml``, and the log says so.

    Args:
        content: of the checkpoint.
        path: of the checkpoint.
        load: the engine's ``load_cfg``.

    Returns:
        ``None`` if it is not known.

    Raises:
        CheckpointError: what the checkpoint holds is no config.
    """
    config = content.get("config")
    if config is not None:
        if not isinstance(config, Mapping) or not all(isinstance(key, str) for key in config):
            raise CheckpointError(f"{path}: 'config' must be a dict by key, got {config!r:.60}")
        return dict(config)
    file = path.with_name("config.yaml")
    try:
        found = flat(load(file))
    except OneNetError as error:
        logger.warning(
            "%s does not hold the config of its run, and config.yaml beside it cannot be read "
            "(%s): going on as if nothing had changed",
            path,
            error,
        )
        return None
    logger.info("%s does not hold the config of its run: comparing with %s", path, file)
    return found


def refusal(path: Path, why: str) -> CheckpointError:
    """The error that ends a run which cannot be resumed, with the ways out."""
    return CheckpointError(
        f"{path} cannot be resumed with this config: {why}. Resume with the config of its run, or "
        f"{without_resuming(path)}"
    )


def without_resuming(path: Path) -> str:
    """The way out where a checkpoint does not fit the run."""
    return f"start a new run in another OUTPUT_DIR with MODEL.WEIGHTS {path}"
