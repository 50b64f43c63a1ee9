"""Timing candidates in turn, A B C A B C …, so that disturbances affect them all alike."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch import nn

TOTAL = "total"


class Stopwatch:
    """Records when the stages of one run end: by the clock on the CPU, by events on CUDA.

    Call it with a stage's name when the stage ends. Stages of the same name are added up.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        if self._cuda:
            torch.cuda.synchronize()
        self._marks: list[tuple[str, Any]] = [("", self._now())]

    def __call__(self, stage: str) -> None:
        self._marks.append((stage, self._now()))

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self) -> dict[str, float]:
        """Seconds of each stage, and ``"total"`` from the start to this call."""
        end = self._now()
        if self._cuda:
            torch.cuda.synchronize()
        spent: dict[str, float] = {}
        for (_, before), (stage, now) in zip(self._marks[:-1], self._marks[1:], strict=True):
            spent[stage] = spent.get(stage, 0.0) + self._between(before, now)
        spent[TOTAL] = self._between(self._marks[0][1], end)
        return spent

    def _between(self, start: Any, end: Any) -> float:
        return start.elapsed_time(end) / 1000 if self._cuda else end - start


# Does the work once; may record its stages.
Run = Callable[[Stopwatch], Any]
# Seconds of each repeat, by stage.
Timings = dict[str, list[float]]


@contextmanager
def collector_off() -> Iterator[None]:
    """Turn garbage collection off, since it would slow down whichever candidate runs just then."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def alternate(
    candidates: Mapping[str, Run], *, repeats: int, warmup: int, device: torch.device
) -> dict[str, Timings]:
    """Time candidates in turn, ``repeats`` times each after ``warmup`` runs that do not count.

    Returns:
        Timings by candidate, in the candidates' order.
    """
    for run in candidates.values():
        for _ in range(warmup):
            run(Stopwatch(device))
    timings: dict[str, Timings] = {name: {} for name in candidates}
    with collector_off():
        for _ in range(repeats):
            for name, run in candidates.items():
                watch = Stopwatch(device)
                run(watch)
                for stage, seconds in watch.seconds().items():
                    timings[name].setdefault(stage, []).append(seconds)
    return timings


@contextmanager
def stages_of(
    watch: Stopwatch,
    *,
    before: Mapping[str, nn.Module] | None = None,
    after: Mapping[str, nn.Module] | None = None,
) -> Iterator[None]:
    """Within this context, end stages when a module's forward pass begins or ends, by hooks.

    Args:
        watch: records the stages.
        before: modules before which a stage ends, by stage.
        after: modules after which a stage ends, by stage.
    """
    hooks = []
    try:
        for stage, module in (before or {}).items():
            hooks.append(module.register_forward_pre_hook(lambda *_, s=stage: watch(s)))
        for stage, module in (after or {}).items():
            hooks.append(module.register_forward_hook(lambda *_, s=stage: watch(s)))
        yield
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True)
class Comparison:
    """The timings of candidates that ran in turn.

    Attributes:
        title: what was done, at which size.
        timings: seconds of each repeat, by candidate and stage; ``"total"`` is always there.
        baseline: the candidate that the others are compared with; "" for none.
        images: number of images that one run processes; 0 if it processes none.
        facts: further columns, by candidate and column.
        notes: lines to print below the table.
        axis: for a curve, what the candidates' names are values of; "" for bars.
    """

    title: str
    timings: Mapping[str, Timings]
    baseline: str = ""
    images: int = 0
    facts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    axis: str = ""

    def seconds(self, candidate: str, stage: str = TOTAL) -> float:
        """Median seconds of a candidate's stage."""
        return median(self.timings[candidate][stage])

    def speedup(self, candidate: str) -> float:
        """How many times faster than the baseline a candidate is, by medians."""
        return self.seconds(self.baseline) / self.seconds(candidate)

    @property
    def stages(self) -> list[str]:
        """Names of all candidates' stages except the total, in the order of their appearance."""
        names = {stage: None for timings in self.timings.values() for stage in timings}
        return [name for name in names if name != TOTAL]
