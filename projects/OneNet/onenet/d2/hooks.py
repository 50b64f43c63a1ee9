"""The core's hooks as a hook of Detectron2's, and the early end of a training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detectron2.engine import HookBase
from detectron2.utils import comm
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
        self._over = False

    @property
    def iteration(self) -> int:
        """How many iterations are done."""
        return self._training.iteration

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
            self.end()

    def after_train(self) -> None:
        # A run that was done before it was resumed takes no step.
        if self.trainer.start_iter >= self.trainer.max_iter:
            self.end()

    def end(self) -> None:
        """Call every hook's ``at_end``, once."""
        if not self._over:
            self._over = True
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


class EndedEarly(BaseException):
    """Ends Detectron2's loop, which counts to a number that is fixed at its start."""


class EndEarly(HookBase):
    """Ends training as ``SOLVER.MAX_ITER`` does where ``SOLVER.EARLY_STOP`` says so.

    The last of all hooks. Its exception is :class:`EndedEarly`.
    """

    def before_train(self) -> None:
        if self.trainer.start_iter < self.trainer.max_iter:
            self._end_if_due(self.trainer.start_iter)

    def after_step(self) -> None:
        if self.trainer.iter + 1 < self.trainer.max_iter:
            self._end_if_due(self.trainer.iter + 1)

    def _end_if_due(self, done: int) -> None:
        trainer = self.trainer
        if not trainer.best.ended:
            return
        trainer.core_hooks.end()
        trainer.checkpointer.save("model_final", iteration=done - 1)
        comm.synchronize()
        trainer.iter = trainer.max_iter = done
        raise EndedEarly
