"""The losses of an iteration, left on the device until they are needed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from torch import Tensor

from onenet.matcher import NonFiniteError


class History:
    """Losses of the iterations that were not read yet, and what each was computed on.

    Reading makes the host wait for the device. On the CPU, where that costs nothing, every
    iteration is read; elsewhere when losses are logged, and before anything is saved or evaluated.

    Args:
        fabric: gives the device and the processes.
        iteration: how many were done before.

    Attributes:
        immediate: every iteration should be read.
    """

    def __init__(self, fabric: Fabric, iteration: int) -> None:
        self.fabric = fabric
        self.iteration = iteration
        self.immediate = fabric.device.type == "cpu"
        self._names: list[str] = []
        self._rows: list[Tensor] = []
        self._files: list[Sequence[str]] = []

    def add(self, values: Mapping[str, Tensor], files: Sequence[str]) -> None:
        """Append an iteration.

        Args:
            values: scalars by name, the same names every time.
            files: images of this process' share of the batch.
        """
        self._names = list(values)
        self._rows.append(torch.stack(list(values.values())))
        self._files.append(files)

    def read(self) -> list[dict[str, float]]:
        """The values of every new iteration, means over the processes, which all call this.

        Raises:
            NonFiniteError: one is NaN or infinite; names it, its iteration and that one's images.
        """
        if not self._rows:
            return []
        rows = torch.stack(self._rows)
        if self.fabric.world_size > 1:
            rows = self.fabric.all_reduce(rows, reduce_op="mean")
        values = [dict(zip(self._names, row, strict=True)) for row in rows.tolist()]
        for i, named in enumerate(values):
            wrong = [
                f"{name} = {value}" for name, value in named.items() if not math.isfinite(value)
            ]
            if wrong:
                files = self._of_all_processes(self._files[i])
                raise diverged(self.iteration + i + 1, ", ".join(wrong), files)
        self.iteration += len(values)
        self._rows.clear()
        self._files.clear()
        return values

    def _of_all_processes(self, files: Sequence[str]) -> Sequence[str]:
        if self.fabric.world_size == 1:
            return files
        shares: list[Sequence[str]] = [()] * self.fabric.world_size
        dist.all_gather_object(shares, files)
        return [file for share in shares for file in share]


def check_finite(state: Mapping[str, Tensor], iteration: int) -> None:
    """Raise ``NonFiniteError`` if weights or statistics to be saved are NaN or infinite."""
    floating = {name: value for name, value in state.items() if value.is_floating_point()}
    good = torch.stack([value.isfinite().all() for value in floating.values()]).tolist()
    wrong = [name for name, fine in zip(floating, good, strict=True) if not fine]
    if wrong:
        raise diverged(iteration, f"{wrong[0]} in the model is NaN or infinite")


def diverged(iteration: int, what: str, files: Sequence[str] = ()) -> NonFiniteError:
    """The error that ends a training.

    Args:
        iteration: counted from 1.
        what: was not finite.
        files: the images that it was computed on.
    """
    images = f", on {', '.join(files)}" if files else ""
    return NonFiniteError(
        f"iteration {iteration}: {what}{images}. Training stopped; the last checkpoint is as it "
        "was. A lower SOLVER.BASE_LR, a longer SOLVER.WARMUP_ITERS or "
        "SOLVER.CLIP_GRADIENTS.ENABLED True (CLIP_TYPE full_model) is the usual cure"
    )
