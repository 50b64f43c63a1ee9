"""What a run needs of the checkpoint that it resumes from; the same for both engines."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onenet.errors import CheckpointError

logger = logging.getLogger(__name__)


def restore(parts: Mapping[str, Any], content: Mapping[str, Any], path: Path) -> int:
    """Load a checkpoint into the parts of a run.

    Args:
        parts: each with a ``load_state_dict``, by its name in the checkpoint; ``ema`` where the
            run averages its weights.
        content: of the checkpoint.
        path: of the checkpoint, for messages.

    Returns:
        How many iterations are done.

    Raises:
        CheckpointError: the checkpoint belongs to another config.
    """
    if "trainer" in content and "trainer" not in parts:
        raise CheckpointError(
            f"{path} is a checkpoint of Detectron2's trainer. Resume with the engine that wrote it "
            f"(--engine detectron2), or {without_resuming(path)}"
        )
    averages = "ema" in parts
    if averages != ("ema" in content):
        raise CheckpointError(
            f"{path} cannot be resumed with MODEL_EMA.ENABLED {averages}; its run had "
            f"{not averages}. Set it so, or {without_resuming(path)}"
        )
    try:
        for name, part in parts.items():
            part.load_state_dict(content[name])
        iterations = content["iteration"] + 1
    except (KeyError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be resumed with this config: {error}. Resume with the config of its "
            f"run, or {without_resuming(path)}"
        ) from error
    logger.info("Resumed from %s: %d iterations are done", path, iterations)
    return iterations


def without_resuming(path: Path) -> str:
    """The way out where a checkpoint does not fit the run."""
    return f"start a new run with MODEL.WEIGHTS {path}"


def log_no_checkpoint(folder: object) -> None:
    """Say that ``--resume`` starts a run, as ``OUTPUT_DIR`` holds none."""
    logger.info("%s holds no checkpoint: starting from the first iteration", folder)
