"""What a run saves and resumes from, with several processes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric import Fabric

from onenet.checkpoints.files import read_checkpoint
from onenet.checkpoints.series import add_checkpoint, find_checkpoints, save_final
from onenet.errors import CheckpointError
from onenet.training.run_folder import FINAL, RunFolder


class Checkpoints:
    """The checkpoints in a run's folder; the first process writes them and chooses among them.

    Args:
        run_folder: the run and its folder.
        fabric: of the run's processes.
        keep: ``SOLVER.CHECKPOINT_KEEP``.

    Attributes:
        last: the one that ``--resume`` would continue from, as far as this process knows.
    """

    def __init__(self, run_folder: RunFolder, fabric: Fabric, keep: int) -> None:
        self.run_folder, self.fabric, self.keep = run_folder, fabric, keep
        self.folder = run_folder.path
        self.last: Path | None = None

    def read_last(self) -> dict[str, Any] | None:
        """The content to continue from, the same in all processes; ``None`` without a checkpoint.

        Raises:
            CheckpointError: none can be read, or this machine has others than the first one.
        """
        first = self.fabric.global_rank == 0
        found = self.run_folder.read_last() if first else None
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
            return None
        self.last = self.folder / name
        return found[1] if found else read_checkpoint(self.last)

    def save(self, iterations: int, content: Mapping[str, Any]) -> None:
        """Write a checkpoint to resume from, named like Detectron2's by its last iteration.

        Where it cannot be written, the log says why.
        """
        path = self.folder / f"model_{iterations - 1:07d}.pth"
        content = {**content, "iteration": iterations - 1, "run": self.run_folder.run}
        if self.fabric.global_rank == 0 and add_checkpoint(path, content, self.keep):
            self.last = path

    def newest(self) -> Path | None:
        """The last checkpoint; processes other than the first look for it on the disk."""
        if self.fabric.global_rank == 0:
            return self.last
        return next(iter(find_checkpoints(self.folder)), None)

    def wait(self) -> None:
        """Let every process know the last checkpoint, once the first process has written it."""
        self.last = self.fabric.broadcast(self.last)

    def save_final(self, content: Mapping[str, Any]) -> Path:
        """Write ``model_final.pth``, the result of the training.

        Raises:
            WriteError: it cannot be written; names the last checkpoint.
        """
        path = self.folder / FINAL
        if self.fabric.global_rank == 0:
            save_final(path, content, self.last)
        self.fabric.barrier()
        return path
