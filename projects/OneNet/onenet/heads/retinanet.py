"""RetinaNet head (arXiv 1708.02002) with one positive for each target: no IoU thresholds or NMS."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from onenet.ops.boxes import anchor_grid, cell_anchors, decode_deltas
from onenet.structures import Predictions

from .base import BoxConv, conv3x3, join_levels, make_tower, per_sample
from .towers import TowerHead, Towers


class RetinaNetHead(TowerHead):
    """Two towers shared by all levels; samples are anchors.

    Args:
        in_channels: C of every feature map.
        strides: of the feature maps, px.
        num_classes: K.
        anchor_sizes: of each level, the square roots of the anchors' areas, px.
        aspect_ratios: height / width, the same for all levels.
        anchor_offset: centre of the first anchor, in strides.
        num_convs, channels: of each tower.
        prior_prob, init: see :class:`~onenet.heads.base.Head`.

    Raises:
        ValueError: the anchor sizes do not fit the levels.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        strides: Sequence[int],
        num_classes: int,
        anchor_sizes: Sequence[Sequence[float]],
        aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0),
        anchor_offset: float = 0.0,
        num_convs: int = 4,
        channels: int = 256,
        prior_prob: float = 0.01,
        init: str = "xavier",
    ) -> None:
        super().__init__(num_classes=num_classes, prior_prob=prior_prob, init=init)
        if len(anchor_sizes) != len(strides) or len(set(map(len, anchor_sizes))) != 1:
            raise ValueError(
                f"anchor sizes must give the same number of sizes for each of the {len(strides)} "
                f"levels, got {[list(sizes) for sizes in anchor_sizes]}"
            )
        self.strides = tuple(strides)
        self.anchor_offset = anchor_offset
        # Not persistent: they follow from the config, and checkpoints do not hold them.
        for level, sizes in enumerate(anchor_sizes):
            self.register_buffer(f"cell{level}", cell_anchors(sizes, aspect_ratios), False)
        num_anchors = len(anchor_sizes[0]) * len(aspect_ratios)
        self.cls_conv_module = make_tower(in_channels, channels, num_convs, norm="")
        self.reg_conv_module = make_tower(in_channels, channels, num_convs, norm="")
        self.cls_score = conv3x3(channels, num_anchors * num_classes)
        self.bbox_pred = BoxConv(channels, num_anchors * 4)
        self.reset_parameters(self.cls_score)

    @property
    def box_layer(self) -> nn.Conv2d:
        return self.bbox_pred

    def predict(self, towers: Towers, class_layer: nn.Module, box_layer: nn.Module) -> Predictions:
        """See :class:`~onenet.heads.towers.TowerHead`."""
        logits, boxes, samples = [], [], []
        for level, ((x, box_x), stride) in enumerate(zip(towers, self.strides, strict=True)):
            class_map, box_map = class_layer(x), box_layer(box_x)
            cell = getattr(self, f"cell{level}")
            anchors = anchor_grid(cell, *x.shape[-2:], stride, self.anchor_offset)
            logits.append(self.logits(class_map))
            boxes.append(decode_deltas(anchors, per_sample(box_map, 4).float()))
            samples.append(anchors)
        return join_levels(logits, boxes, samples)
