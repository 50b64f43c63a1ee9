"""What all heads share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from onenet.structures import Predictions

if TYPE_CHECKING:
    from .branch import Branch

# Values of MODEL.OneNet.INIT.
INITS = ("xavier", "calm")


class Head(nn.Module, ABC):
    """Feature maps in, predictions out.

    Args:
        num_classes: K, the foreground classes.
        prior_prob: class probability that an untrained head starts from (arXiv 1708.02002, 4.1).
        init: see :func:`initialise`.

    Attributes:
        num_stages: how many stages are trained.
        inference_stages: the stage, counted from 1, whose predictions :meth:`forward` returns.
    """

    num_stages = inference_stages = 1

    def __init__(self, *, num_classes: int, prior_prob: float = 0.01, init: str = "xavier") -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        if not 0 < prior_prob < 1:
            raise ValueError(f"prior_prob must lie between 0 and 1, got {prior_prob}")
        self.num_classes = num_classes
        self.prior_prob = prior_prob
        self.init = init

    @abstractmethod
    def forward(self, features: list[Tensor]) -> Predictions:
        """Predictions from feature maps (B, C_l, H_l, W_l), finest first."""

    def outputs(
        self, features: list[Tensor], branch: Branch | None = None
    ) -> dict[str, Predictions]:
        """The predictions that are trained, each matched by itself: "main", then "stage_2" …

        Args:
            branch: of :meth:`make_branch`; its predictions are called "aux".
        """
        return {"main": self(features)}

    def make_branch(self, **options: Any) -> Branch:
        """A one-to-many branch of this head, with options of :class:`~onenet.heads.branch.Branch`.

        Raises:
            NotImplementedError: heads of this class have none.
        """
        raise NotImplementedError(f"{type(self).__name__} has no one-to-many branch")

    def logits(self, maps: Tensor) -> Tensor:
        """(B, A · K, H, W) to (B, H · W · A, K).

        float32 in training, for the loss. At inference they keep their dtype: only the few that
        become detections are converted, to the same values.
        """
        logits = per_sample(maps, self.num_classes)
        return logits.float() if self.training else logits

    def reset_parameters(self, class_layer: nn.Conv2d) -> None:
        """:func:`initialise` all layers; called once they are there."""
        initialise(self, class_layer, prior_prob=self.prior_prob, init=self.init)


def initialise(
    module: nn.Module,
    class_layer: nn.Conv2d | nn.Linear,
    *,
    prior_prob: float = 0.01,
    init: str = "xavier",
) -> None:
    """Xavier-uniform weights, then the focal prior on the bias of the class layer alone.

    This includes deconvolutions and the offset convolutions of DCN, as in the original, which the
    published figures rest on. Other biases keep their layers' initial values.

    Args:
        module: with all layers of a predictor.
        class_layer: one of them.
        prior_prob: class probability to start from.
        init: "xavier", as above; "calm": the class layer's weights are normal with standard
            deviation 0.01, as in RetinaNet (arXiv 1708.02002, 4.1), DeFCN and DATE. Every sample
            then starts near ``prior_prob`` on any features.
    """
    if init not in INITS:
        raise ValueError(f"init must be one of {', '.join(INITS)}, got {init!r}")
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
    if init == "calm":
        nn.init.normal_(class_layer.weight, std=0.01)
    nn.init.constant_(class_layer.bias, -math.log((1 - prior_prob) / prior_prob))


def conv3x3(in_channels: int, out_channels: int, bias: bool = True) -> nn.Conv2d:
    """3×3 convolution that keeps the map's size."""
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=bias)


class BoxConv(nn.Conv2d):
    """3×3 convolution to the boxes' sides, in float32 even under autocast.

    bfloat16 rounds 100 px to half a pixel, and these channels are few.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_autocast_enabled(x.device.type):
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


class BoxLinear(nn.Linear):
    """:class:`BoxConv` for features of one sample each: (..., C) to (..., sides)."""

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_autocast_enabled(x.device.type):
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


def per_sample(maps: Tensor, width: int) -> Tensor:
    """(B, A · width, H, W) to (B, H · W · A, width): rows, columns, then the cell's A.

    No copy where ``maps`` is ``channels_last``.
    """
    return maps.permute(0, 2, 3, 1).reshape(maps.shape[0], -1, width)


def join_levels(
    logits: Iterable[Tensor], boxes: Iterable[Tensor], samples: Iterable[Tensor]
) -> Predictions:
    """Concatenate the samples of all levels.

    Args:
        logits, boxes: of each level (B, N_l, K) and (B, N_l, 4).
        samples: of each level (N_l, 4).
    """
    samples = list(samples)
    # shape[0] and not len(), which torch.export would take for a constant.
    levels = [torch.full((s.shape[0],), i, device=s.device) for i, s in enumerate(samples)]
    return Predictions(
        torch.cat(list(logits), dim=1),
        torch.cat(list(boxes), dim=1),
        torch.cat(samples),
        torch.cat(levels),
    )


def make_tower(in_channels: int, channels: int, num_convs: int, norm: str) -> nn.Sequential:
    """``num_convs`` × (3×3 convolution without bias, normalisation if any, ReLU).

    One flat sequence, because checkpoints name the layers by their place in it.

    Args:
        norm: "GN" (32 groups), "BN" or "" for none.

    Raises:
        ValueError: an unknown norm, no convolution, or channels that GN cannot group.
    """
    norms = {"GN": partial(nn.GroupNorm, 32), "BN": nn.BatchNorm2d, "": None}
    if norm not in norms:
        raise ValueError(f"tower normalisation must be one of GN, BN or '' (none), got {norm!r}")
    if num_convs < 1:
        raise ValueError(f"num_convs must be at least 1, got {num_convs}")
    if norm == "GN" and channels % 32:
        raise ValueError(f"channels must be a multiple of 32 (groups of GN), got {channels}")
    layers: list[nn.Module] = []
    for i in range(num_convs):
        layers.append(conv3x3(in_channels if i == 0 else channels, channels, bias=False))
        if norms[norm] is not None:
            layers.append(norms[norm](channels))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)
