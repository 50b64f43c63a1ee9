"""Loggers that write files in the run's folder: TensorBoard's, and a table."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from onenet.files import open_lines, write_whole

from .run_logger import LoggedRun, RunLogger, register


@register("tensorboard")
class TensorBoard(RunLogger):
    """TensorBoard's event files in the run's folder; a resumed run takes back what it repeats."""

    def __init__(self, run: LoggedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(run.folder, purge_step=run.iteration)

    def log(self, iteration: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            if np.isfinite(value):
                self.writer.add_scalar(name, value, iteration)

    def pictures(self, iteration: int, images: Mapping[str, np.ndarray]) -> None:
        for name, image in images.items():
            self.writer.add_image(name, image, iteration, dataformats="HWC")

    def close(self, *, finished: bool) -> None:
        self.writer.close()


@register("csv")
class Csv(RunLogger):
    """``metrics.csv`` in the run's folder: a row an entry, a column a name.

    A value that a row lacks is empty, as are NaN and infinity. A resumed run goes on after the last
    row that it does not repeat.
    """

    def __init__(self, run: LoggedRun) -> None:
        self.path = run.folder / "metrics.csv"
        open_lines(self.path).close()
        self.columns = ["iteration"]
        self._rewrite([row for row in self._rows() if int(row["iteration"]) <= run.iteration])

    def _rows(self) -> list[dict[str, str]]:
        with self.path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
            self.columns = list(reader.fieldnames or self.columns)
        return rows

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        write_whole(self.path, self._text(rows, header=True).encode())

    def _text(self, rows: list[Any], *, header: bool = False) -> str:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def log(self, iteration: int, values: Mapping[str, float]) -> None:
        finite = {name: value for name, value in values.items() if np.isfinite(value)}
        if more := [name for name in values if name not in self.columns]:
            rows = self._rows()
            self.columns += more
            self._rewrite(rows)
        with open_lines(self.path) as file:
            file.write(self._text([{"iteration": iteration, **finite}]))
