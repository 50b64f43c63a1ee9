"""torchvision's detectors as meta-architectures, for comparison under the same conditions.

RetinaNet, FCOS and Faster R-CNN use the ResNet pyramids of OneNet's FCOS and RetinaNet heads;
SSD300 and SSDlite320 have backbones of their own. Heads, assignment, losses and post-processing are
torchvision's. Each process normalises its losses separately.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import detection as tv
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.ssd import SSD as TorchvisionSSD
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign

from onenet.backbones.fpn import FPN
from onenet.backbones.registry import build_backbone
from onenet.inference.fuse import fold_batch_norms
from onenet.structures import Detections, Targets

from .registry import register


class Unresized(GeneralizedRCNNTransform):
    """Normalises and pads images to a multiple of 32 px, and leaves their sizes to ``INPUT``.

    Args:
        mean, std: of the channels, in the images' order, 0…255.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__(min_size=1, max_size=1, image_mean=list(mean), image_std=list(std))

    def resize(self, image: Tensor, target: Any = None) -> tuple[Tensor, Any]:
        return image, target


class Baseline(nn.Module):
    """Mixed into a detector of torchvision, it gives the detector OneNet's inputs and outputs.

    Attributes:
        first_label: label of the first class; 1 where 0 is the background.
        class_layers: prefixes of the parameters that depend on the number of classes.
    """

    first_label = 0
    class_layers: tuple[str, ...] = ("head.classification_head.",)

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Targets] | None = None
    ) -> dict[str, Tensor] | list[Detections]:
        """Losses in training, detections otherwise.

        Args:
            images: B of (3, H, W), uint8 or float, 0…255; sizes may differ.
            targets: B, in training only; boxes without area, which torchvision refuses, are left
                out.

        Returns:
            In training torchvision's losses, ``loss_`` before their names; otherwise B
            :class:`~onenet.structures.Detections` in px of these images, boxes clipped.
        """
        device = next(self.parameters()).device
        pixels = [image.to(device, non_blocking=True).float() for image in images]
        if not self.training:
            return [
                Detections(found["boxes"], found["scores"], found["labels"] - self.first_label)
                for found in super().forward(pixels)
            ]
        truth = [self._to_torchvision(t.to(device, non_blocking=True)) for t in targets]
        losses = super().forward(pixels, truth)
        return {f"loss_{name.removeprefix('loss_')}": loss for name, loss in losses.items()}

    def prepare_inference(
        self, *, fuse: bool = True, precision: str = "float32", compile: bool = False
    ) -> Baseline:
        """For inference only: fold batch norms and lay weights out as ``channels_last``.

        Raises:
            ValueError: another precision, or to be compiled.
        """
        if precision != "float32" or compile:
            raise ValueError("torchvision's detectors run in float32 and uncompiled here")
        self.eval()
        if fuse:
            fold_batch_norms(self)
            self.to(memory_format=torch.channels_last)
        return self

    def _to_torchvision(self, targets: Targets) -> dict[str, Tensor]:
        has_area = (targets.boxes[:, 2:] > targets.boxes[:, :2]).all(dim=1)
        return {
            "boxes": targets.boxes[has_area],
            "labels": targets.labels[has_area] + self.first_label,
        }


class RetinaNet(Baseline, tv.RetinaNet):
    """RetinaNet (arXiv 1708.02002)."""

    class_layers = ("head.classification_head.cls_logits.",)


class FCOS(Baseline, tv.FCOS):
    """FCOS (arXiv 1904.01355)."""

    class_layers = ("head.classification_head.cls_logits.",)


class FasterRCNN(Baseline, tv.FasterRCNN):
    """Faster R-CNN (arXiv 1506.01497) with a feature pyramid."""

    first_label = 1
    class_layers = ("roi_heads.box_predictor.",)


class SSD(Baseline, TorchvisionSSD):
    """SSD (arXiv 1512.02325), which resizes every image to its own fixed size."""

    first_label = 1


@register("torchvision.RetinaNet")
def _build_retinanet(cfg: Any) -> RetinaNet:
    backbone = _pyramid(cfg)
    return _unresized(
        cfg,
        RetinaNet(
            backbone,
            cfg.MODEL.OneNet.NUM_CLASSES,
            anchor_generator=_anchors(cfg, len(backbone.shapes)),
            **_post_processing(cfg),
        ),
    )


@register("torchvision.FCOS")
def _build_fcos(cfg: Any) -> FCOS:
    backbone = _pyramid(cfg)
    # Boxes are measured in strides, which torchvision takes for the sizes of anchors.
    strides = tuple((shape.stride,) for shape in backbone.shapes.values())
    return _unresized(
        cfg,
        FCOS(
            backbone,
            cfg.MODEL.OneNet.NUM_CLASSES,
            anchor_generator=AnchorGenerator(strides, ((1.0,),) * len(strides)),
            **_post_processing(cfg),
        ),
    )


@register("torchvision.FasterRCNN")
def _build_faster_rcnn(cfg: Any) -> FasterRCNN:
    backbone = _pyramid(cfg)
    stages = [f"p{level}" for level in backbone.levels]
    return _unresized(
        cfg,
        FasterRCNN(
            backbone,
            cfg.MODEL.OneNet.NUM_CLASSES + 1,
            rpn_anchor_generator=_anchors(cfg, len(backbone.shapes)),
            box_roi_pool=MultiScaleRoIAlign(stages, output_size=7, sampling_ratio=2),
            **{f"box_{name}": value for name, value in _post_processing(cfg).items()},
        ),
    )


@register("torchvision.SSD300")
def _build_ssd300(cfg: Any) -> SSD:
    return _build_ssd(cfg, tv.ssd300_vgg16)


@register("torchvision.SSDlite320")
def _build_ssdlite320(cfg: Any) -> SSD:
    return _build_ssd(cfg, tv.ssdlite320_mobilenet_v3_large)


def _build_ssd(cfg: Any, build: Callable[..., TorchvisionSSD]) -> SSD:
    if cfg.MODEL.BACKBONE.FREEZE_AT:
        raise ValueError(
            f"MODEL.BACKBONE.FREEZE_AT is {cfg.MODEL.BACKBONE.FREEZE_AT}; expected 0, as "
            f"{cfg.MODEL.META_ARCHITECTURE} trains its own backbone from scratch"
        )
    classes = cfg.MODEL.OneNet.NUM_CLASSES + 1
    original = build(weights=None, weights_backbone=None, num_classes=classes)
    return SSD(
        original.backbone,
        original.anchor_generator,
        original.transform.fixed_size,
        classes,
        head=original.head,
        topk_candidates=original.topk_candidates,
        image_mean=list(cfg.MODEL.PIXEL_MEAN),
        image_std=list(cfg.MODEL.PIXEL_STD),
        **_post_processing(cfg),
    )


def _post_processing(cfg: Any) -> dict[str, Any]:
    if cfg.MODEL.OneNet.NMS:
        raise ValueError(
            f"MODEL.OneNet.NMS is OneNet's; {cfg.MODEL.META_ARCHITECTURE} has NMS anyway, at the "
            "IoU MODEL.TORCHVISION.NMS_THRESH"
        )
    return {
        "score_thresh": cfg.MODEL.TORCHVISION.SCORE_THRESH,
        "nms_thresh": cfg.MODEL.TORCHVISION.NMS_THRESH,
        "detections_per_img": cfg.TEST.DETECTIONS_PER_IMAGE,
    }


def _pyramid(cfg: Any) -> FPN:
    backbone = build_backbone(cfg)
    if list(cfg.MODEL.OneNet.IN_FEATURES) != list(backbone.shapes) or not isinstance(backbone, FPN):
        raise ValueError(
            f"{cfg.MODEL.META_ARCHITECTURE} reads all levels of a pyramid: MODEL.BACKBONE.NAME "
            f"{cfg.MODEL.BACKBONE.NAME} makes {', '.join(backbone.shapes)}, MODEL.OneNet."
            f"IN_FEATURES is {list(cfg.MODEL.OneNet.IN_FEATURES)}; take a file of configs/baselines"
        )
    backbone.out_channels = cfg.MODEL.FPN.OUT_CHANNELS  # which torchvision asks for
    return backbone


def _anchors(cfg: Any, levels: int) -> AnchorGenerator:
    anchors = cfg.MODEL.ANCHOR_GENERATOR
    if anchors.OFFSET:
        raise ValueError(
            f"MODEL.ANCHOR_GENERATOR.OFFSET is {anchors.OFFSET}; expected 0.0, which torchvision's "
            "anchors have"
        )
    rows = []
    for key in ("SIZES", "ASPECT_RATIOS"):
        given = [tuple(row) for row in anchors[key]]
        given *= levels if len(given) == 1 else 1
        if len(given) != levels:
            raise ValueError(
                f"MODEL.ANCHOR_GENERATOR.{key} has {len(given)} lists; expected one for each of "
                f"the {levels} levels, or one for all"
            )
        rows.append(tuple(given))
    return AnchorGenerator(*rows)


def _unresized(cfg: Any, detector: Baseline) -> Any:
    detector.transform = Unresized(cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)
    return detector
