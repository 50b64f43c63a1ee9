"""What the steps share: where results go, how long is left, and how work is timed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from _shared.timing import TOTAL, Timings, alternate
from benchmarks.options import Options

from onenet.files import strict_json

CONFIGS = Path(__file__).parents[3] / "projects" / "OneNet" / "configs"
NAMES = ("res18.dcn", "res18.nodcn", "res50.dcn", "res50.nodcn")
RESULTS = "results.jsonl"


@dataclass(frozen=True)
class Check:
    """One step of a check.

    Attributes:
        step: its name.
        out: folder of the results.
        device: what is measured.
        quick: the smallest sizes, to see that it runs.
        limit: seconds that the step may take.
        data: ``ANNOTATIONS.json:FOLDER`` to train on; "": none.
    """

    step: str
    out: Path
    device: torch.device
    quick: bool
    limit: float
    data: str = ""
    start: float = field(default_factory=time.perf_counter)

    @property
    def left(self) -> float:
        """Seconds until the step is ended."""
        return self.limit - (time.perf_counter() - self.start)

    @property
    def configs(self) -> list[Path]:
        """OneNet's published models: ResNet-18 and 50, deformable or not."""
        names = NAMES[:2] if self.quick else NAMES
        return [CONFIGS / f"onenet.{name}.yaml" for name in names]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) px of the images."""
        return (64, 96) if self.quick else (512, 864)

    def options(self, *, train_batch: int = 1) -> Options:
        """The same for the benchmark's parts."""
        return Options(
            device=self.device,
            configs=tuple(self.configs),
            size=self.size,
            batches=(1,),
            train_batch=train_batch,
            repeats=2 if self.quick else 20,
            warmup=1 if self.quick else 3,
            quick=self.quick,
        )

    def record(self, **row: Any) -> None:
        """Append a row to the results, at once: the step may be ended at any time."""
        line = strict_json({"step": self.step, **row})
        with (self.out / RESULTS).open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line, flush=True)

    def time(self, candidates: Mapping[str, Callable[..., Any]]) -> dict[str, Timings]:
        """Time candidates in turn; each takes a stopwatch."""
        options = self.options()
        return alternate(
            candidates, repeats=options.repeats, warmup=options.warmup, device=self.device
        )

    def ms(self, work: Callable[[], Any]) -> float:
        """Median milliseconds of some work."""
        timings = self.time({"": lambda _: work()})
        return 1000 * median(timings[""][TOTAL])

    @contextmanager
    def going_on(self, **row: Any) -> Iterator[None]:
        """Record an error in place of a result, and go on with the next."""
        try:
            yield
        except Exception as error:
            words = (str(error).splitlines() or [""])[0][:200]
            self.record(**row, error=f"{type(error).__name__}: {words}")
            if self.device.type == "cuda":
                torch.cuda.empty_cache()


def captured(work: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
    """The work as a CUDA graph: calling it replays the graph. On the CPU the work itself."""
    if device.type == "cpu":
        return work
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = work()

    def replay() -> Any:
        graph.replay()
        return kept

    return replay


def read(out: Path) -> list[dict[str, Any]]:
    """The rows so far; a line that was cut short is left out."""
    rows = []
    path = out / RESULTS
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows
