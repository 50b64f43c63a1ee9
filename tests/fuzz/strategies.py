"""Mutated files as a strategy of hypothesis."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from .targets import Target
from .trees import CHANGES


@st.composite
def mutated(draw: Any, target: Target) -> bytes:
    """A valid file of a target with one to five changes."""
    data = draw(st.sampled_from(target.seeds()))
    rng = draw(st.randoms(use_true_random=False))
    for _ in range(draw(st.sampled_from(CHANGES))):
        data = target.mutate(rng, data)
    return data
