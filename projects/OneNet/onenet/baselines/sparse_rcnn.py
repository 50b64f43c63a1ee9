"""Sparse R-CNN (arXiv 2011.12450): learnt proposals, refined in stages by dynamic heads.

Every proposal is a box and a vector, both learnt. A stage pools the features within the boxes, lets
the vectors see each other by attention, filters each box's features with two layers whose weights
it makes of the vector, and predicts the classes and a better box, which the next stage starts from.

Parameters have the names of https://github.com/PeizeSun/SparseR-CNN, whose checkpoints fit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from onenet.heads.base import BoxLinear, initialise
from onenet.ops.boxes import decode_deltas
from onenet.structures import Predictions

from .queries import QueryDetector, initial_boxes, stage_predictions

# Side of the features pooled from a box, and points along each side of their cells.
RESOLUTION, POINTS = 7, 2
# A box of this size in px is pooled from the map of this stride.
CANONICAL_SIZE, CANONICAL_STRIDE = 224, 16
# What the layer's output is divided by: shifts in parts of the box's size, and log-factors of it.
DELTA_WEIGHTS = (2.0, 2.0, 1.0, 1.0)
# A stage makes a box larger by this factor at most.
MAX_GROWTH = 100000.0 / 16
CLASS_LAYERS, BOX_LAYERS = 1, 3


def pool(maps: Sequence[Tensor], strides: Sequence[int], boxes: Tensor) -> Tensor:
    """Features within boxes, each from the map that suits its size, as Detectron2 pools them.

    That is its ``ROIPooler`` of type "ROIAlignV2". torchvision's ``MultiScaleRoIAlign`` would give
    other features: half a cell away, and at least one cell wide.

    Args:
        maps: (B, C, H_l, W_l), finest first.
        strides: of the maps, px, each twice the one before.
        boxes: (B, N, 4) xyxy px; no gradient flows to them.

    Returns:
        (B · N, C, ``RESOLUTION``, ``RESOLUTION``).
    """
    flat = boxes.detach().flatten(0, 1)
    image = torch.arange(len(boxes), device=flat.device).repeat_interleave(boxes.shape[1])
    rows = torch.cat((image[:, None].to(flat), flat), dim=1)
    sizes = ((flat[:, 2] - flat[:, 0]) * (flat[:, 3] - flat[:, 1])).sqrt()
    middle = math.log2(CANONICAL_STRIDE)
    finest, coarsest = math.log2(strides[0]), math.log2(strides[-1])
    # The tiny number is Detectron2's, for boxes without area; a size of NaN belongs to no map.
    octave = (middle + (sizes / CANONICAL_SIZE + 1e-8).log2()).floor().clamp(finest, coarsest)
    pooled = maps[0].new_zeros(len(flat), maps[0].shape[1], RESOLUTION, RESOLUTION)
    for level, (features, stride) in enumerate(zip(maps, strides, strict=True)):
        here = (octave == finest + level).nonzero().flatten()
        found = roi_align(features, rows[here], RESOLUTION, 1 / stride, POINTS, aligned=True)
        pooled.index_copy_(0, here, found)
    return pooled


class DynamicConv(nn.Module):
    """Filters the features of each box with two 1×1 layers, made of the proposal's vector.

    Args:
        channels: C of vectors and features.
        hidden: channels between the two layers.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.channels, self.hidden = channels, hidden
        self.dynamic_layer = nn.Linear(channels, 2 * channels * hidden)
        self.norm1 = nn.LayerNorm(hidden)
        self.norm2 = nn.LayerNorm(channels)
        self.out_layer = nn.Linear(channels * RESOLUTION**2, channels)
        self.norm3 = nn.LayerNorm(channels)

    def forward(self, vectors: Tensor, pooled: Tensor) -> Tensor:
        """(P, C) from P vectors (P, C) and their boxes' features (P, C, h, w)."""
        into, out = self.dynamic_layer(vectors).chunk(2, dim=1)
        x = pooled.flatten(2).mT
        x = F.relu(self.norm1(x @ into.view(-1, self.channels, self.hidden)))
        x = F.relu(self.norm2(x @ out.view(-1, self.hidden, self.channels)))
        return F.relu(self.norm3(self.out_layer(x.flatten(1))))


class Stage(nn.Module):
    """One stage: better vectors, classes and boxes of all proposals.

    Args:
        channels: C of maps and vectors.
        num_classes: K.
        num_attention_heads: of the attention between the proposals of an image.
        feedforward: channels within the feed-forward network.
        hidden: see :class:`DynamicConv`.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        *,
        num_attention_heads: int,
        feedforward: int,
        hidden: int,
    ) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(channels, num_attention_heads, batch_first=True)
        self.inst_interact = DynamicConv(channels, hidden)
        self.linear1 = nn.Linear(channels, feedforward)
        self.linear2 = nn.Linear(feedforward, channels)
        for number in (1, 2, 3):
            self.add_module(f"norm{number}", nn.LayerNorm(channels))
        self.cls_module = _layers(channels, CLASS_LAYERS)
        self.reg_module = _layers(channels, BOX_LAYERS)
        self.class_logits = nn.Linear(channels, num_classes)
        self.bboxes_delta = BoxLinear(channels, 4)

    def forward(self, vectors: Tensor, boxes: Tensor, pooled: Tensor) -> tuple[Tensor, ...]:
        """Vectors (B, N, C), logits (B, N, K) and boxes (B, N, 4) after this stage.

        Args:
            vectors, boxes: (B, N, C) and (B, N, 4) xyxy px before it.
            pooled: (B · N, C, h, w), features within the boxes.
        """
        seen, _ = self.self_attn(vectors, vectors, vectors, need_weights=False)
        vectors = self.norm1(vectors + seen)
        found = self.inst_interact(vectors.flatten(0, 1), pooled)
        vectors = self.norm2(vectors + found.view_as(vectors))
        vectors = self.norm3(vectors + self.linear2(F.relu(self.linear1(vectors))))
        deltas = self.bboxes_delta(self.reg_module(vectors)).float()
        deltas = deltas / deltas.new_tensor(DELTA_WEIGHTS)
        boxes = decode_deltas(boxes, deltas, max_log_size=math.log(MAX_GROWTH))
        return vectors, self.class_logits(self.cls_module(vectors)), boxes


def _layers(channels: int, count: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(count):
        layers += nn.Linear(channels, channels, bias=False), nn.LayerNorm(channels), nn.ReLU()
    return nn.Sequential(*layers)


class DynamicHead(nn.Module):
    """The stages in a row.

    Args:
        in_channels, strides: C and px of the maps, finest first; C is the same for all.
        num_classes: K.
        num_stages: at least 1.
        prior_prob, init: see :func:`~onenet.heads.base.initialise`.
        options: of each :class:`Stage`.

    Raises:
        ValueError: maps or sizes that do not fit each other; names the key.
    """

    def __init__(
        self,
        *,
        in_channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        num_stages: int = 6,
        num_attention_heads: int = 8,
        feedforward: int = 2048,
        hidden: int = 64,
        prior_prob: float = 0.01,
        init: str = "xavier",
    ) -> None:
        super().__init__()
        channels = in_channels[0]
        doubled = [strides[0] * 2**i for i in range(len(strides))]
        if set(in_channels) != {channels} or list(strides) != doubled:
            raise ValueError(
                "Sparse R-CNN reads neighbouring levels of a pyramid (MODEL.OneNet.IN_FEATURES): "
                "expected maps of equal channels whose strides double, got "
                f"{list(in_channels)} channels at strides {list(strides)}"
            )
        if channels % num_attention_heads:
            raise ValueError(
                f"the attention heads (MODEL.SparseRCNN.NHEADS) must divide the {channels} "
                f"channels of the maps (MODEL.FPN.OUT_CHANNELS), got {num_attention_heads}"
            )
        self.channels, self.strides = channels, tuple(strides)
        self.head_series = nn.ModuleList(
            Stage(
                channels,
                num_classes,
                num_attention_heads=num_attention_heads,
                feedforward=feedforward,
                hidden=hidden,
            )
            for _ in range(num_stages)
        )
        for stage in self.head_series:
            initialise(stage, stage.class_logits, prior_prob=prior_prob, init=init)

    def forward(
        self, maps: Sequence[Tensor], boxes: Tensor, vectors: Tensor
    ) -> list[tuple[Tensor, Tensor]]:
        """Logits (B, N, K) and boxes (B, N, 4) after each stage.

        Args:
            maps: (B, C, H_l, W_l), finest first.
            boxes: (B, N, 4) xyxy px, the initial ones.
            vectors: (N, C), the initial ones of every image.
        """
        vectors = vectors.expand(len(boxes), -1, -1)
        found = []
        for stage in self.head_series:
            vectors, logits, boxes = stage(vectors, boxes, pool(maps, self.strides, boxes))
            found.append((logits.float() if self.training else logits, boxes))
            boxes = boxes.detach()  # each stage learns its own step
        return found


class SparseRCNN(QueryDetector):
    """Sparse R-CNN; its samples are the learnt initial boxes.

    Args:
        head: a :class:`DynamicHead`.
        num_proposals: N.
        options: of :class:`~.queries.QueryDetector`.
    """

    head: DynamicHead

    def __init__(self, *, num_proposals: int, **options: Any) -> None:
        super().__init__(**options)
        self.init_proposal_features = nn.Embedding(num_proposals, self.head.channels)
        # Centre, width and height in parts of the image: each starts as the whole of it.
        self.init_proposal_boxes = nn.Embedding(num_proposals, 4)
        with torch.no_grad():
            self.init_proposal_boxes.weight.copy_(torch.tensor([0.5, 0.5, 1.0, 1.0]))

    @property
    def class_layers(self) -> tuple[str, ...]:
        """Prefixes of the parameters that depend on the number of classes."""
        stages = range(len(self.head.head_series))
        return tuple(f"head.head_series.{i}.class_logits." for i in stages)

    def stages(self, batch: Tensor, sizes: Tensor) -> list[Predictions]:
        """See :class:`~.queries.QueryDetector`."""
        boxes = initial_boxes(self.init_proposal_boxes.weight, sizes)
        found = self.head(self.features(batch), boxes, self.init_proposal_features.weight)
        samples = boxes[0].detach()
        return [stage_predictions(logits, refined, samples) for logits, refined in found]
