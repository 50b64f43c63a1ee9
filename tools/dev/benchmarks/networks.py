"""Making random networks behave like trained ones, and preparing torchvision's for inference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from onenet.inference.fuse import fold_batch_norms


@torch.no_grad()
def settle_norms(model: nn.Module, look: Callable[[], Any]) -> None:
    """Set the statistics of a model's batch norms from the forward pass that ``look`` runs.

    Otherwise the activations of a deep random network grow from layer to layer without bound, and
    DCN reads far outside its feature maps.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta, training = [norm.momentum for norm in norms], model.training
    model.train()
    for norm in norms:
        norm.momentum = 1.0
    look()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.train(training)


def fold_torchvision(model: nn.Module) -> int:
    """Fold batch norms as :func:`~onenet.inference.fuse.fold_batch_norms`, also in torchvision's.

    torchvision's ResNets name norms after the convolutions that they follow: ``conv1``, ``bn1``.

    Returns:
        The number of folded norms.
    """
    for module in model.modules():
        pairs = [(name, name.replace("conv", "bn")) for name, _ in module.named_children()]
        found = [(c, n) for c, n in pairs if c != n and hasattr(module, n)]
        if found:
            module.BATCH_NORMS = found
    return fold_batch_norms(model)


def weights_to_bfloat16(model: nn.Module) -> None:
    """Convert weights once, which autocast would convert in every call."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(torch.bfloat16)
