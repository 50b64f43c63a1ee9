"""Batch norms folded into the convolutions before them: the same values in fewer passes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.ops import FrozenBatchNorm2d

# By name, to include Detectron2's; subclasses may do more and are not folded.
_NORMS = {"BatchNorm2d", "FrozenBatchNorm2d", "NaiveSyncBatchNorm", "SyncBatchNorm"}
# timm's, and onenet.backbones.timm's, which also activate: the activation stays.
_NORMS_WITH_ACTIVATION = {"BatchNormAct2d", "FrozenNormAct", "SyncBatchNormAct"}
# Others compute their weight in every call. Conv2dSame pads as TensorFlow does.
_CONVS = {"Conv2d", "Conv2dSame"}


def fold_batch_norms(model: nn.Module) -> int:
    """Fold batch norms into convolutions, in place and for inference only.

    A batch norm belongs to a convolution if

    - it is the convolution's ``norm``, as in Detectron2's layers,
    - it follows the convolution directly in an ``nn.Sequential``,
    - the module that holds both says so: its ``BATCH_NORMS`` are pairs of attribute names,
      (convolution, batch norm), or
    - a module that holds both finds it so: its ``norm_pairs()`` gives convolutions, holders of
      batch norms, and their names there, as :class:`~onenet.backbones.timm.TimmBackbone` does.

    All others stay as they are, and so do those of convolutions that several modules share.

    Args:
        model: any module, in evaluation mode.

    Returns:
        The number of folded batch norms.

    Raises:
        ValueError: the model is in training mode.
    """
    if model.training:
        raise ValueError("batch norms are folded for inference only: call eval() first")
    found = {(id(holder), name): (conv, holder, name) for conv, holder, name in _pairs(model)}
    pairs = [pair for pair in found.values() if _foldable(*pair)]
    for conv, holder, name in pairs:
        norm = getattr(holder, name)
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight,
            conv.bias,
            norm.running_mean,
            norm.running_var,
            norm.eps,
            norm.weight,
            norm.bias,
            transpose=isinstance(conv, nn.ConvTranspose2d),
        )
        setattr(holder, name, _activation(norm))
    return len(pairs)


def spell_out_batch_norms(model: nn.Module) -> None:
    """Make scales and shifts of the batch norms that were not folded, in place and for inference.

    A graph then holds products and sums in their place.
    """
    for holder in list(model.modules()):
        for name, norm in list(holder.named_children()):
            if isinstance(norm, nn.BatchNorm2d | nn.SyncBatchNorm):
                plain = FrozenBatchNorm2d(norm.num_features, eps=norm.eps)
                plain.load_state_dict(norm.state_dict(), strict=False)
                setattr(holder, name, nn.Sequential(plain, _activation(norm)).eval())


def _activation(norm: nn.Module) -> nn.Module:
    """What a batch norm does behind its normalisation."""
    return norm.act if type(norm).__name__ in _NORMS_WITH_ACTIVATION else nn.Identity().eval()


def _pairs(model: nn.Module) -> Iterator[tuple[Any, nn.Module, str]]:
    """Each convolution with the module that may hold its batch norm, and the attribute's name."""
    places = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and hasattr(module, "norm"):
            yield module, module, "norm"
        if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
            # Not named_children(), which skips modules that appear twice.
            for (_, conv), (name, _) in pairwise(module._modules.items()):
                plain = type(conv) in (nn.Conv2d, nn.ConvTranspose2d)
                if plain and places[id(conv)] == 1:
                    yield conv, module, name
        if hasattr(module, "norm_pairs"):
            yield from (pair for pair in module.norm_pairs() if type(pair[0]).__name__ in _CONVS)
        for conv, name in getattr(module, "BATCH_NORMS", ()):
            if places[id(getattr(module, conv))] == 1:
                yield getattr(module, conv), module, name


def _foldable(conv: nn.Module, holder: nn.Module, name: str) -> bool:
    norm = getattr(holder, name)
    return (
        type(norm).__name__ in _NORMS | _NORMS_WITH_ACTIVATION
        and norm.running_mean is not None
        and "weight" in conv._parameters  # otherwise it is computed from other parameters
        # torch's formula is right only for transposed convolutions of one group.
        and not (isinstance(conv, nn.ConvTranspose2d) and conv.groups > 1)
    )
