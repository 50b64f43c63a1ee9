"""The core's hooks as a hook of Detectron2's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detectron2.engine import HookBase
from torch import Tensor, nn
from torch.optim import Optimizer

from onenet.training.guard import Guard
from onenet.training.hooks import Hook, HookStates


class CoreHooks(HookBase):
    """Runs hooks of :mod:`onenet.training.hooks` in Detectron2's loop.

    Args:
        hooks: by name, in order. Detectron2 saves their states with its own.
    """

    def __init__(self, hooks: Mapping[str, Hook]) -> None:
        self.hooks = hooks
        self._states = HookStates(hooks)

    def before_train(self) -> None:
        self._training = _Training(self.trainer)
        for hook in self.hooks.values():
            hook.trainer = self._training
            hook.before_train()

    def before_step(self) -> None:
        self._training.iteration = self.trainer.iter
        for hook in self.hooks.values():
            hook.before_step()

    def after_step(self) -> None:
        self._training.iteration = self.trainer.iter + 1
        for hook in self.hooks.values():
            hook.after_step()
        # Not in after_train(): Detectron2 saves the result in the last after_step().
        if self._training.iteration >= self.trainer.max_iter:
            self._end()

    def after_train(self) -> None:
        # A run that was done before it was resumed takes no step.
        if self.trainer.start_iter >= self.trainer.max_iter:
            self._end()

    def _end(self) -> None:
        for hook in self.hooks.values():
            hook.at_end()

    def state_dict(self) -> dict[str, Any]:
        return self._states.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._states.load_state_dict(state)


class _Training:
    """Detectron2's trainer as the core's hooks see it, a ``Training``."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self.cfg = trainer.cfg
        self.iteration: int = trainer.start_iter

    @property
    def model(self) -> nn.Module:
        return self._trainer.bare_model

    @property
    def optimizer(self) -> Optimizer:
        return self._trainer._trainer.optimizer

    @property
    def guard(self) -> Guard:
        return self._trainer._trainer.guard

    @property
    def values(self) -> dict[str, Tensor]:
        return self._trainer._trainer.values
