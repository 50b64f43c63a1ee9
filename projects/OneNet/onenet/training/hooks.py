"""Features of the training loop as hooks; a user adds one from a file (``docs/hooks.md``).

Both engines run these hooks: the embedded one in its own loop, Detectron2 as one of its
``HookBase``. What only one engine needs is in that engine's ``hooks.py``.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Protocol

from fvcore.common.registry import Registry
from torch import Tensor, nn
from torch.optim import Optimizer

from onenet.assignment.criterion import Criterion
from onenet.errors import ConfigError, look_up

from .ema import ModelEMA
from .guard import Guard

logger = logging.getLogger(__name__)

# Values of HOOKS: ``cfg -> Hook``.
HOOK_REGISTRY = Registry("ONENET_HOOK")


class Training(Protocol):
    """What a hook sees of a training, whichever engine runs it.

    Attributes:
        cfg: the config.
        model: without what several processes wrap around it.
        optimizer: in ``before_step``, its learning rates are those of the step to come.
        guard: says whether the last step changed the weights.
        iteration: how many are done: 0 in the first ``before_step``, 1 in the first ``after_step``.
        values: of the last step on this process: detached losses by name and the gradient's norm,
            scalars on the device.
    """

    cfg: Any
    model: nn.Module
    optimizer: Optimizer
    guard: Guard
    iteration: int
    values: Mapping[str, Tensor]


class Hook:
    """Something that happens around the steps of a training, on every process.

    Hooks are called in order; ``HOOKS`` come before what logs, saves and evaluates.

    Args:
        cfg: the config.

    Attributes:
        trainer: the training, from ``before_train`` on.
    """

    trainer: Training

    def __init__(self, cfg: Any) -> None:
        self.cfg = cfg

    def before_train(self) -> None:
        """Before the first iteration of this start, resumed or not."""

    def before_step(self) -> None:
        """Before each iteration."""

    def after_step(self) -> None:
        """After each iteration: the weights are updated; nothing is saved or evaluated yet."""

    def at_end(self) -> None:
        """After the last iteration, unless training stopped before it."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold for a resumed run to end like an uninterrupted one.

        Plain values and tensors: a checkpoint is loaded without running code.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state_dict` gave."""


class Average(Hook):
    """Updates the moving average of the weights (``MODEL_EMA``) after every step.

    Args:
        ema: the average; the engine saves it.
    """

    def __init__(self, cfg: Any, ema: ModelEMA) -> None:
        super().__init__(cfg)
        self.ema = ema

    def after_step(self) -> None:
        self.ema.update(self.trainer.model, self.trainer.guard.good)


class Progress(Hook):
    """Lets criteria know how much of the training is done; some change their losses during it.

    A function of the iteration alone, so a resumed run goes on exactly.
    """

    def before_step(self) -> None:
        set_progress(self.trainer.model, self.trainer.iteration / self.cfg.SOLVER.MAX_ITER)


def set_progress(model: nn.Module, progress: float) -> None:
    """Set the ``progress`` of a model's criteria, from 0 to 1."""
    for module in model.modules():
        if isinstance(module, Criterion):
            module.progress = progress


def build_hooks(cfg: Any) -> dict[str, Hook]:
    """The hooks that ``HOOKS`` names, by name, in order, after those that every training has.

    Raises:
        ConfigError: no hook of that name is registered.
    """
    if cfg.HOOKS and not list(HOOK_REGISTRY):
        raise ConfigError(
            f"HOOKS is {list(cfg.HOOKS)}, but no hook is registered: give the file that registers "
            "it with --import"
        )
    own = {name: look_up(HOOK_REGISTRY, "HOOKS", name)(cfg) for name in cfg.HOOKS}
    return {"training progress": Progress(cfg), **own}


class HookStates:
    """The states of hooks as a part of a checkpoint; those that have none take no place.

    Args:
        hooks: by name.
    """

    def __init__(self, hooks: Mapping[str, Hook]) -> None:
        self.hooks = hooks

    def state_dict(self) -> dict[str, Any]:
        """The states by the hooks' names."""
        states = {name: hook.state_dict() for name, hook in self.hooks.items()}
        return {name: state for name, state in states.items() if state}

    def load_state_dict(self, states: Mapping[str, Any]) -> None:
        """Give the hooks their states; a warning names those of hooks that are not there."""
        for name, state in states.items():
            if name in self.hooks:
                self.hooks[name].load_state_dict(state)
            else:
                logger.warning(
                    "The checkpoint's state of the hook %s is unused: add it to HOOKS", name
                )
