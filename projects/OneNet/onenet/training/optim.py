"""The optimiser with gradient clipping, and the learning-rate schedule, of ``SOLVER``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    ConstantParamScheduler,
    CosineParamScheduler,
    LinearParamScheduler,
    MultiStepParamScheduler,
    ParamScheduler,
)
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR


def build_optimizer(cfg: Any, model: nn.Module, *, fused: bool = False) -> Optimizer:
    """AdamW or SGD on the trainable parameters; the backbone's rate has a multiplier.

    Every parameter, biases and norms included, decays by ``WEIGHT_DECAY`` as in the original.
    Gradients are clipped as ``SOLVER.CLIP_GRADIENTS`` says before every step.

    Args:
        fused: one kernel for the whole step, see :mod:`onenet.training.guard`. Not with a gradient
            scaler: it leaves its scale in the gradients of a fused optimiser, and clipping would
            see it.
    """
    backbone, rest = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (backbone if "backbone" in name.split(".") else rest).append(parameter)
    s = cfg.SOLVER
    groups = [
        {"params": backbone, "lr": s.BASE_LR * s.BACKBONE_MULTIPLIER},
        {"params": rest, "lr": s.BASE_LR},
    ]
    groups = [group for group in groups if group["params"]]
    if s.OPTIMIZER == "SGD":
        optimizer: Optimizer = SGD(
            groups, momentum=s.MOMENTUM, weight_decay=s.WEIGHT_DECAY, fused=fused
        )
    elif s.OPTIMIZER == "ADAMW":
        optimizer = AdamW(groups, weight_decay=s.WEIGHT_DECAY, fused=fused)
    else:
        raise ValueError(f"SOLVER.OPTIMIZER must be ADAMW or SGD, got {s.OPTIMIZER!r}")
    if fused and s.OPTIMIZER == "SGD" and s.MOMENTUM:
        # The optimiser would leave them uninitialised if the first step is skipped.
        for group in groups:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    if s.CLIP_GRADIENTS.ENABLED:
        optimizer.register_step_pre_hook(lambda *_: clip_gradients(s.CLIP_GRADIENTS, model))
    optimizer.register_load_state_dict_post_hook(_match_layout)
    return optimizer


def _match_layout(optimizer: Optimizer) -> None:
    """Give loaded state the parameters' memory layout, which a fused optimiser does not check."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if torch.is_tensor(value) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def gradient_norm(model: nn.Module) -> Tensor:
    """Scalar 2-norm of all gradients together."""
    # torch.nn.utils.get_total_norm needs torch 2.6.
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))


def lr_schedule(cfg: Any) -> Callable[[int], float]:
    """What the base rates are multiplied by at an iteration, counted from 0.

    The curves of Detectron2's ``build_lr_scheduler``: warm-up rises to the value that the schedule
    has at its end; it lasts ``MAX_ITER`` iterations at most.
    """
    s = cfg.SOLVER
    total = s.MAX_ITER
    if s.LR_SCHEDULER_NAME == "WarmupCosineLR":
        schedule: ParamScheduler = CosineParamScheduler(1, s.BASE_LR_END / s.BASE_LR)
    else:
        steps = sorted(s.STEPS)
        # A checkpoint of the last iteration holds the rate of the next: a run may be prolonged.
        total = max(total, *(step + 1 for step in steps), 1)
        values = [s.GAMMA**k for k in range(len(steps) + 1)]
        schedule = MultiStepParamScheduler(values, total, steps)
    length = min(s.WARMUP_ITERS, s.MAX_ITER) / total
    start = s.WARMUP_FACTOR * schedule(0)
    warmup: ParamScheduler = LinearParamScheduler(start, schedule(length))
    if s.WARMUP_METHOD == "constant":
        warmup = ConstantParamScheduler(start)
    curve = CompositeParamScheduler(
        [warmup, schedule], [length, 1 - length], interval_scaling=["rescaled", "fixed"]
    )
    return lambda iteration: curve(min(iteration / total, 1.0))


def lr_factor(cfg: Any, iteration: int) -> float:
    """The value of :func:`lr_schedule` at one iteration."""
    return lr_schedule(cfg)(iteration)


def build_scheduler(cfg: Any, optimizer: Optimizer) -> LambdaLR:
    """The schedule as a torch scheduler, stepped once an iteration."""
    return LambdaLR(optimizer, lr_schedule(cfg))


def clip_gradients(c: Any, model: nn.Module) -> None:
    """Clip as a ``SOLVER.CLIP_GRADIENTS`` section says.

    ``full_model``: the norm over all parameters together (the original's); ``norm``: of each
    parameter; ``value``: each element.
    """
    parameters = [p for p in model.parameters() if p.grad is not None]
    if c.CLIP_TYPE == "full_model":
        torch.nn.utils.clip_grad_norm_(parameters, c.CLIP_VALUE, norm_type=c.NORM_TYPE)
    elif c.CLIP_TYPE == "norm":
        gradients = [p.grad for p in parameters]
        norms = torch.stack(torch._foreach_norm(gradients, c.NORM_TYPE))
        # As torch.nn.utils.clip_grad_norm_() has it, for all at once.
        factors = (c.CLIP_VALUE / (norms + 1e-6)).clamp(max=1)
        torch._foreach_mul_(gradients, list(factors.to(gradients[0].dtype)))
    else:
        torch.nn.utils.clip_grad_value_(parameters, c.CLIP_VALUE)
