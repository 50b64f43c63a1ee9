"""Any convolutional or hierarchical network of timm as a backbone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision.ops import FrozenBatchNorm2d

from .resnet import NORMS, Shape
from .timm_names import KEY, check_name, load_timm

STRIDES = {4: "res2", 8: "res3", 16: "res4", 32: "res5"}
# Images of two shapes, to see what a network makes of them: (H, W) px.
_PROBES = ((64, 96), (96, 64))


class TimmBackbone(nn.Module):
    """A network of timm without its classifier; its maps of stride 4 … 32 are ``res2`` … ``res5``.

    Args:
        name: as timm spells it, such as "convnext_tiny" or "resnet18.a1_in1k"; a tag names
            weights, which :func:`onenet.checkpoints.weights.load_weights` loads.
        out_indices: timm's numbers of the maps; empty: all of stride 4 … 32.
        norm: of batch norms: "BN" as they are, "FrozenBN" or "SyncBN".
        freeze_at: 0 freezes nothing, 1 the layers that the map of stride 2 comes from, 2 those of
            res2, and so on; frozen batch norms become FrozenBN.

    Raises:
        ConfigError: timm is missing, or has no such model.
        ValueError: a model that gives no such maps, takes images of one size only, or has no
            batch norms where ``norm`` needs some; an unknown norm; no such stage to freeze.
    """

    def __init__(
        self,
        name: str,
        *,
        out_indices: Sequence[int] = (),
        norm: str = "BN",
        freeze_at: int = 0,
    ) -> None:
        super().__init__()
        if norm not in NORMS:
            raise ValueError(f"MODEL.TIMM.NORM must be one of {', '.join(NORMS)}, got {norm!r}")
        if not 0 <= freeze_at <= 5:
            raise ValueError(f"MODEL.BACKBONE.FREEZE_AT must be from 0 to 5, got {freeze_at}")
        check_name(name)
        options = {"out_indices": tuple(out_indices)} if out_indices else {}
        try:
            self.net = load_timm().create_model(name, features_only=True, **options)
            strides = self.net.feature_info.reduction()
        except (AssertionError, AttributeError, IndexError, RuntimeError, TypeError) as error:
            # timm has no error of its own for a model without features_only.
            which = f" with MODEL.TIMM.OUT_INDICES {list(out_indices)}" if out_indices else ""
            raise ValueError(f"{KEY} {name} gives no feature maps{which} ({error})") from error
        # By place in the network's list of maps, the last one of each stride.
        self._maps = {stride: place for place, stride in enumerate(strides)}
        others = [s for s in strides if s not in STRIDES]
        wrong = others if out_indices else [] if set(STRIDES) <= set(strides) else strides
        if wrong or (out_indices and len(set(strides)) < len(strides)):
            raise ValueError(
                f"{KEY} {name} gives maps of strides {', '.join(map(str, strides))}; expected 4, "
                "8, 16 and 32, or with MODEL.TIMM.OUT_INDICES different ones of them"
            )
        found = self._probe(name)
        wanted = [stride for stride in STRIDES if stride in self._maps]
        self._channels_last = found[-1].shape[1] != self.net.feature_info.channels()[-1]
        self.shapes = {
            STRIDES[stride]: Shape(self.net.feature_info.channels()[self._maps[stride]], stride)
            for stride in wanted
        }
        if freeze_at:
            self._freeze(name, freeze_at)
        self._set_norm(name, norm)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Feature maps by name from images (B, 3, H, W), sides a multiple of 32."""
        maps = self.net(x)
        found = {name: maps[self._maps[shape.stride]] for name, shape in self.shapes.items()}
        if self._channels_last:
            return {name: x.permute(0, 3, 1, 2) for name, x in found.items()}
        return found

    def from_classifier(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This backbone's part of a classifier's parameters, which have timm's names.

        timm joins the first two parts of some names in a network without its classifier:
        ``stages.0.…`` is ``stages_0.…`` there.
        """
        own = self.state_dict()
        found = {}
        for name, value in state.items():
            for ours in (name, f"net.{name}", f"net.{name.replace('.', '_', 1)}"):
                if ours in own:
                    found[ours] = value
        return found

    def norm_pairs(self) -> Iterator[tuple[nn.Module, nn.Module, str]]:
        """Convolutions whose output is read by one batch norm alone, found by running the network.

        Yields:
            The convolution, the module that holds the batch norm, and its name there; see
            :func:`onenet.inference.fuse.fold_batch_norms`.
        """
        holders = {
            id(child): (parent, name)
            for parent in self.net.modules()
            for name, child in parent.named_children()
        }
        with _watched(self.net) as reads:
            self._run(_PROBES[0])
        for conv, norm in reads.pairs():
            yield conv, *holders[id(norm)]

    @torch.no_grad()
    def _run(self, size: tuple[int, int]) -> list[Tensor]:
        """The network's maps of a black image, in evaluation mode."""
        training = self.net.training
        reference = next(self.net.parameters())
        maps = self.net.eval()(reference.new_zeros(1, 3, *size))
        self.net.train(training)
        return list(maps)

    def _probe(self, name: str) -> list[Tensor]:
        """The maps of a small image; ``ValueError`` if images may not have just any size."""
        strides, channels = self.net.feature_info.reduction(), self.net.feature_info.channels()
        for size in _PROBES:
            try:
                maps = self._run(size)
            except (AssertionError, RuntimeError, ValueError) as error:
                raise ValueError(
                    f"{KEY} {name} does not take images of every size ({error}); expected a "
                    "convolutional network"
                ) from error
            shapes = [tuple(x.shape[1:]) for x in maps]
            for shape, stride, width in zip(shapes, strides, channels, strict=True):
                cells = [math.ceil(side / stride) for side in size]
                if shape not in ((width, *cells), (*cells, width)):
                    raise ValueError(
                        f"{KEY} {name} makes a map of {shape} from an image of {size} px, but "
                        f"names its stride {stride} and its channels {width}"
                    )
        return maps

    def _freeze(self, name: str, freeze_at: int) -> None:
        stride = 2**freeze_at
        if stride not in self._maps:
            made = ", ".join(str(int(math.log2(s))) for s in sorted(self._maps))
            raise ValueError(
                f"MODEL.BACKBONE.FREEZE_AT is {freeze_at}, but {KEY} {name} has no map of stride "
                f"{stride} to freeze up to; expected 0 or one of {made}"
            )
        parameters = list(self.net.parameters())
        image = parameters[0].new_zeros(1, 3, *_PROBES[0])
        training = self.net.training
        target = self.net.eval()(image)[self._maps[stride]].sum()
        self.net.train(training)
        grads = torch.autograd.grad(target, parameters, allow_unused=True)
        for parameter, grad in zip(parameters, grads, strict=True):
            if grad is not None:
                parameter.requires_grad_(False)
        for parent in list(self.net.modules()):
            for attribute, child in list(parent.named_children()):
                if isinstance(child, nn.BatchNorm2d) and not child.weight.requires_grad:
                    setattr(parent, attribute, _frozen(child))

    def _set_norm(self, name: str, norm: str) -> None:
        if norm == "BN":
            return
        norms = [m for m in self.net.modules() if isinstance(m, nn.BatchNorm2d | FrozenBatchNorm2d)]
        if not norms:
            raise ValueError(
                f"MODEL.TIMM.NORM is {norm!r}, but {KEY} {name} has no batch norms; expected 'BN', "
                "which leaves its norms as they are"
            )
        if norm == "SyncBN":
            self.net = load_timm().layers.convert_sync_batchnorm(self.net)
            return
        for parent in list(self.net.modules()):
            for attribute, child in list(parent.named_children()):
                if isinstance(child, nn.BatchNorm2d):
                    setattr(parent, attribute, _frozen(child))


class FrozenNormAct(FrozenBatchNorm2d):
    """A FrozenBN with the activation that timm's ``BatchNormAct2d`` holds."""

    def __init__(self, channels: int, eps: float, act: nn.Module) -> None:
        super().__init__(channels, eps=eps)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), normalised and activated."""
        return self.act(super().forward(x))


def _frozen(norm: nn.BatchNorm2d) -> FrozenBatchNorm2d:
    """A FrozenBN with a batch norm's values, and with its activation where timm joins the two."""
    if hasattr(norm, "act"):
        frozen: FrozenBatchNorm2d = FrozenNormAct(norm.num_features, norm.eps, norm.act)
    else:
        frozen = FrozenBatchNorm2d(norm.num_features, eps=norm.eps)
    frozen.load_state_dict(norm.state_dict(), strict=False)
    return frozen


class _Reads(TorchFunctionMode):
    """Counts how often the outputs of convolutions are read, and by which batch norms."""

    def __init__(self) -> None:
        super().__init__()
        # By id of a tensor: the convolution, the tensor (which keeps its id), and its reads.
        self.outputs: dict[int, tuple[nn.Module, Tensor]] = {}
        self.counts: dict[int, int] = {}
        self.norms: dict[int, nn.Module] = {}
        self.calls: dict[nn.Module, int] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name not in ("dim", "size", "__get__"):  # these read no values
            for value in args:
                if isinstance(value, Tensor) and id(value) in self.outputs:
                    self.counts[id(value)] = self.counts.get(id(value), 0) + 1
        return func(*args, **(kwargs or {}))

    def after_conv(self, conv: nn.Module, _: Any, output: Tensor) -> None:
        self.calls[conv] = self.calls.get(conv, 0) + 1
        self.outputs[id(output)] = (conv, output)

    def before_norm(self, norm: nn.Module, inputs: tuple[Tensor]) -> None:
        self.calls[norm] = self.calls.get(norm, 0) + 1
        # Any other tensor may be gone soon, and its id may be a later output's.
        if id(inputs[0]) in self.outputs:
            self.norms[id(inputs[0])] = norm

    def pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """Convolutions with the batch norms that alone read their outputs, both run once."""
        return [
            (conv, self.norms[key])
            for key, (conv, _) in self.outputs.items()
            if key in self.norms
            and self.counts.get(key) == 1
            and self.calls[conv] == self.calls[self.norms[key]] == 1
        ]


@contextmanager
def _watched(net: nn.Module) -> Iterator[_Reads]:
    """What a network's convolutions and batch norms do within this context."""
    reads, handles = _Reads(), []
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_hook(reads.after_conv))
        elif isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm | FrozenBatchNorm2d):
            handles.append(module.register_forward_pre_hook(reads.before_norm))
    try:
        with reads:
            yield reads
    finally:
        for handle in handles:
            handle.remove()
