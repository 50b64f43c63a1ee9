"""The one-to-many branch in checkpoints: those to resume from have it, ``model_final.pth`` not."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor

logger = logging.getLogger(__name__)
# What the names of its parameters begin with.
BRANCH = "aux."


def deployed_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A model's state without the branch."""
    return {name: value for name, value in state.items() if not name.startswith(BRANCH)}


def deployed(content: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint whose ``model``, and whose moving average ``ema``, are without the branch."""
    content = {**content, "model": deployed_state(content["model"])}
    if "ema" in content:
        content["ema"] = {**content["ema"], "model": deployed_state(content["ema"]["model"])}
    return content


def leave_out_branch(own: dict[str, Tensor], state: dict[str, Tensor]) -> None:
    """Remove the branch from both states, in place, unless both have one of the same layers.

    Args:
        own: of the model that loads weights; a branch that it has then keeps its initialisation,
            and the log says so.
        state: of the checkpoint.
    """
    ours, theirs = ({name for name in names if name.startswith(BRANCH)} for names in (own, state))
    if ours == theirs:
        return
    for names, values in ((ours, own), (theirs, state)):
        for name in names:
            del values[name]
    if ours:
        logger.info("The one-to-many branch (MODEL.OneNet.AUX) keeps its initialisation")
