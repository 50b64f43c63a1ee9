"""The losses of the iterations, left on the device until they are needed."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from onenet.errors import NonFiniteError, OneNetError

from .distributed import gather, processes, rank

logger = logging.getLogger(__name__)
COST, GRADIENT = "cost", "gradient norm"  # among the values of an iteration
_LOGGED = 10  # so many skipped iterations get a line each in the log; then every 10th does


class History:
    """Losses of the iterations that have not been read yet, and the images of each.

    Reading makes the host wait for the device. On the CPU this costs nothing, so every iteration is
    read; on other devices, losses are read for the log, and before anything is saved or evaluated.

    Args:
        device: of the losses.
        iteration: how many iterations were done before.
        tolerated: how many iterations in a row may go wrong, ``SOLVER.SKIP_NONFINITE``.
        dump: called before training stops, with the iteration and what was wrong; writes a file.
            Every process whose losses are not finite calls it, or all if only the gradient is not.

    Attributes:
        immediate: whether every iteration should be read.
        skipped: number of iterations that went wrong and were tolerated.
    """

    def __init__(
        self,
        device: torch.device,
        iteration: int,
        *,
        tolerated: int = 0,
        dump: Callable[[int, str], Path] | None = None,
    ) -> None:
        self.iteration = iteration
        self.tolerated = tolerated
        self.dump = dump
        self.immediate = device.type == "cpu"
        self.skipped = 0
        self._in_a_row = 0
        self._start = iteration
        self._names: list[str] = []
        self._rows: list[Tensor] = []
        self._origins: list[tuple[list[str], list[str]]] = []  # files, costs

    def add(self, values: Mapping[str, Tensor], files: Sequence[str]) -> None:
        """Append an iteration.

        Args:
            values: scalars by name, the same names every time. Only a ``cost`` may come and go: it
                is there if it is not finite, and then the losses are not finite either.
            files: image files of this process' share of the batch.
        """
        self._names = [name for name in values if not name.startswith(COST)]
        self._rows.append(torch.stack([values[name] for name in self._names]))
        costs = [f"{name} = nan" for name in values if name.startswith(COST)]
        self._origins.append((list(files), costs))

    def read(self) -> list[dict[str, float]]:
        """The values of every new iteration, without those that went wrong and were tolerated.

        They are means over the processes, which all call this together.

        Raises:
            NonFiniteError: more iterations in a row than tolerated have a value that is NaN or
                infinite; names the value, the iteration and its images.
        """
        if not self._rows:
            return []
        rows = own = torch.stack(self._rows)
        if processes() > 1:
            rows = own.clone()
            dist.all_reduce(rows)
            rows /= processes()
        good = []
        for i, row in enumerate(rows.tolist()):
            self.iteration += 1
            values = dict(zip(self._names, row, strict=True))
            wrong = [f"{name} = {v}" for name, v in values.items() if not math.isfinite(v)]
            if wrong:
                self._went_wrong(wrong, own[i], *self._origins[i])
            else:
                good.append(values)
                self._in_a_row = 0
        self._rows.clear()
        self._origins.clear()
        return good

    def _went_wrong(
        self, wrong: list[str], own: Tensor, files: list[str], costs: list[str]
    ) -> None:
        self._in_a_row += 1
        stop = self._in_a_row > self.tolerated
        self.skipped += not stop
        if not stop and self.skipped > _LOGGED and self.skipped % _LOGGED:
            return
        losses = [i for i, name in enumerate(self._names) if name != GRADIENT]
        guilty = not own[losses].isfinite().all().item()
        shares = gather((files, costs, guilty))
        files = [file for share in shares for file in share[0]]
        costs = sorted({cost for share in shares for cost in share[1]})
        what = ", ".join([*costs, *wrong])
        if stop:
            dumps = self._dumps(what, guilty or not any(share[2] for share in shares))
            raise diverged(self.iteration, what, files, dumps)
        if rank() == 0:
            text = "iteration %d is skipped, number %d since the start: %s, on %s"
            logger.warning(text, self.iteration, self.skipped, what, ", ".join(files))

    def _dumps(self, what: str, is_mine: bool) -> list[str]:
        """The dumps of all processes; waits for all, as the first to end would end the others."""
        path = None
        if self.dump is not None and is_mine:
            try:
                path = str(self.dump(self.iteration, what))
            except (OneNetError, OSError, RuntimeError) as error:
                logger.warning("iteration %d could not be dumped: %s", self.iteration, error)
        return [path for path in gather(path) if path is not None]

    def report(self) -> None:
        """Log on the first process how many iterations were skipped, if any."""
        if self.skipped and rank() == 0:
            logger.warning(
                "SOLVER.SKIP_NONFINITE: %d of %d iterations since this start were skipped",
                self.skipped,
                self.iteration - self._start,
            )


def check_finite(state: Mapping[str, Tensor], iteration: int) -> None:
    """Raise ``NonFiniteError`` if weights or statistics of a model are NaN or infinite."""
    floating = {name: value for name, value in state.items() if value.is_floating_point()}
    good = torch.stack([value.isfinite().all() for value in floating.values()]).tolist()
    wrong = [name for name, fine in zip(floating, good, strict=True) if not fine]
    if wrong:
        raise diverged(iteration, f"{wrong[0]} in the model is NaN or infinite")


def diverged(
    iteration: int | None, what: str, files: Sequence[str] = (), dumps: Sequence[str] = ()
) -> NonFiniteError:
    """The error that ends a training.

    Args:
        iteration: counted from 1; ``None`` outside of a training.
        what: the values that are not finite.
        files: the images they were computed on.
        dumps: paths of the files that :mod:`onenet.training.replay` reads.
    """
    place = f"iteration {iteration}: " if iteration is not None else ""
    images = f", on {', '.join(files)}" if files else ""
    dump = " or ".join(dumps)
    replay = f" See where it comes from: train_net.py --replay {dump}." if dump else ""
    return NonFiniteError(
        f"{place}{what}{images}. Training stopped; the last checkpoint is as it "
        f"was.{replay} A lower SOLVER.BASE_LR, a longer SOLVER.WARMUP_ITERS or "
        "SOLVER.CLIP_GRADIENTS.ENABLED True (CLIP_TYPE full_model) is the usual cure"
    )
