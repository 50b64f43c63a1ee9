"""Candidates timed in turn, A B C A B C …, so that what disturbs the machine disturbs all alike."""

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
    """Notes when the stages of one run end: by the clock on the CPU, by events on CUDA.

    Call it with a stage's name at its end. Stages of one name are added up.
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
        """Seconds of every stage, and ``"total"``, from the start to the end of this call."""
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


# Does the work once; may note its stages.
Run = Callable[[Stopwatch], Any]
# Seconds of each repeat, by stage.
Samples = dict[str, list[float]]


@contextmanager
def collector_off() -> Iterator[None]:
    """No garbage collection meanwhile: one would fall on whoever happens to run."""
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
) -> dict[str, Samples]:
    """Time candidates in turn, ``repeats`` times each after ``warmup`` runs that do not count.

    Returns:
        Samples by candidate, in the candidates' order.
    """
    for run in candidates.values():
        for _ in range(warmup):
            run(Stopwatch(device))
    samples: dict[str, Samples] = {name: {} for name in candidates}
    with collector_off():
        for _ in range(repeats):
            for name, run in candidates.items():
                watch = Stopwatch(device)
                run(watch)
                for stage, seconds in watch.seconds().items():
                    samples[name].setdefault(stage, []).append(seconds)
    return samples


@contextmanager
def stages_of(
    watch: Stopwatch,
    *,
    before: Mapping[str, nn.Module] | None = None,
    after: Mapping[str, nn.Module] | None = None,
) -> Iterator[None]:
    """End stages where a module's forward pass begins or ends, by hooks."""
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
    """Candidates that were timed in turn.

    Attributes:
        title: what was done, at which size.
        samples: seconds of each repeat, by candidate and stage; ``"total"`` is always there.
        baseline: the candidate whose time the others' is set against; "" for none.
        images: that one run works on; 0 where it is no matter of images.
        facts: further columns, by candidate and column.
        notes: lines for below the table.
        axis: what the candidates' names are values of, for a curve; "" for bars.
    """

    title: str
    samples: Mapping[str, Samples]
    baseline: str = ""
    images: int = 0
    facts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    axis: str = ""

    def seconds(self, candidate: str, stage: str = TOTAL) -> float:
        """Median of a candidate's stage."""
        return median(self.samples[candidate][stage])

    def speedup(self, candidate: str) -> float:
        """How many times faster than the baseline, by medians."""
        return self.seconds(self.baseline) / self.seconds(candidate)

    @property
    def stages(self) -> list[str]:
        """Stages of all candidates, in the order in which they come."""
        names = {stage: None for samples in self.samples.values() for stage in samples}
        return [name for name in names if name != TOTAL]
