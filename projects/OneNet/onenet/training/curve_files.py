"""Loggers that write files in the run's folder: TensorBoard's, and a table."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping

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
        try:
            rows = [row for row in self._rows() if int(row["iteration"]) <= run.iteration]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self.path} is not a table of a run: move it away") from error
        self._rewrite(rows, self.columns)

    def _rows(self) -> list[dict[str, str]]:
        with self.path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
            self.columns = list(reader.fieldnames or self.columns)
        return rows

    def _rewrite(self, rows: list[dict[str, str]], columns: list[str]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_whole(self.path, text.getvalue().encode())
        self.columns = columns

    def log(self, iteration: int, values: Mapping[str, float]) -> None:
        finite = {name: value for name, value in values.items() if np.isfinite(value)}
        if more := [name for name in values if name not in self.columns]:
            rows = self._rows()
            self._rewrite(rows, [*self.columns, *more])
        with open_lines(self.path) as file:
            writer = csv.DictWriter(file, self.columns, lineterminator="\n")
            writer.writerow({"iteration": iteration, **finite})
