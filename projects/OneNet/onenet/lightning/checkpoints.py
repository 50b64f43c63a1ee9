"""What a run saves, and what it goes on from, with several processes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric import Fabric

from onenet.checkpoints.files import (
    add_checkpoint,
    find_checkpoints,
    read_checkpoint,
    read_last_checkpoint,
    save_final,
)
from onenet.errors import CheckpointError

logger = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints in a run's folder; the first process writes them, and chooses among them.

    Args:
        folder: ``OUTPUT_DIR``.
        fabric: gives the processes.
        keep: ``SOLVER.CHECKPOINT_KEEP``.

    Attributes:
        last: the one that ``--resume`` would go on from, as far as a process knows.
    """

    def __init__(self, folder: Path, fabric: Fabric, keep: int) -> None:
        self.folder, self.fabric, self.keep = folder, fabric, keep
        self.last: Path | None = None

    def read_last(self) -> dict[str, Any] | None:
        """The content to go on with, the same in all processes; ``None``: there is no checkpoint.

        Raises:
            CheckpointError: none can be read, or another machine has others.
        """
        first = self.fabric.global_rank == 0
        found = read_last_checkpoint(self.folder) if first else None
        name = self.fabric.broadcast(found and found[0].name)
        if not first:
            own = find_checkpoints(self.folder)
            if name not in [path.name for path in own] if name else own:
                raise CheckpointError(
                    f"cannot resume: the first machine has {name or 'no checkpoint'} in "
                    f"{self.folder}, this one {own[0].name if own else 'none'}; OUTPUT_DIR must be "
                    "on a disk that all machines share"
                )
        if name is None:
            logger.info("%s holds no checkpoint: starting anew", self.folder)
            return None
        self.last = self.folder / name
        return found[1] if found else read_checkpoint(self.last)

    def restore(self, parts: Mapping[str, Any], content: Mapping[str, Any]) -> int:
        """Load what :meth:`read_last` gave, and return how many iterations are done.

        Args:
            parts: with ``load_state_dict``, by their names in the checkpoint.

        Raises:
            CheckpointError: it is of another config.
        """
        try:
            for name, part in parts.items():
                part.load_state_dict(content[name])
            iterations = content["iteration"] + 1
        except (KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"{self.last} cannot be resumed with this config: {error}. Resume with the config "
                "of its run, or start anew with MODEL.WEIGHTS set to it"
            ) from error
        logger.info("Resumed from %s: %d iterations are done", self.last, iterations)
        return iterations

    def save(self, iterations: int, content: Mapping[str, Any]) -> None:
        """Write a checkpoint to resume from, named like Detectron2's by its last iteration.

        What cannot be written is told in the log.
        """
        path = self.folder / f"model_{iterations - 1:07d}.pth"
        content = {**content, "iteration": iterations - 1}
        if self.fabric.global_rank == 0 and add_checkpoint(path, content, self.keep):
            self.last = path

    def save_final(self, content: Mapping[str, Any]) -> Path:
        """Write what comes out at the end.

        Raises:
            WriteError: says what there is.
        """
        path = self.folder / "model_final.pth"
        if self.fabric.global_rank == 0:
            save_final(path, content, self.last)
        self.fabric.barrier()
        return path
