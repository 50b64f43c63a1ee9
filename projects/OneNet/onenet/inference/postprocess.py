"""From predictions to detections: the best k of all (sample, class) pairs, no NMS."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import batched_nms, clip_boxes_to_image

from onenet.structures import Detections, Predictions


def top_k(logits: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The k best (sample, class) pairs of every image, exactly (up to ties).

    In two stages: a sample with one of the best k pairs is among the best k samples by their best
    class, so only those samples are searched in full.

    Args:
        logits: (B, N, K).
        k: how many pairs; all N · K where that is fewer.

    Returns:
        Logits, sample indices and class indices, each (B, min(k, N · K)), best first.
    """
    classes = logits.shape[2]
    rows = logits.amax(dim=2).topk(min(k, logits.shape[1]), dim=1).indices
    candidates = logits.gather(1, rows[..., None].expand(-1, -1, classes)).flatten(1)
    best, flat = candidates.topk(min(k, candidates.shape[1]), dim=1)
    row = torch.div(flat, classes, rounding_mode="floor")
    return best, rows.gather(1, row), flat - row * classes


def best_detections(predictions: Predictions, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best detections of every image of a batch.

    Args:
        predictions: of B images.
        k: detections for each image; N · K where that is fewer.

    Returns:
        Boxes (B, k, 4) float32 xyxy px of the input images, not clipped; scores (B, k) float32,
        best first; labels (B, k) int64.
    """
    best, samples, labels = top_k(predictions.logits, k)
    boxes = predictions.boxes.gather(1, samples[..., None].expand(-1, -1, 4))
    return boxes, best.float().sigmoid(), labels


def per_image(
    boxes: Tensor, scores: Tensor, labels: Tensor, nms_iou: float | None = None
) -> list[Detections]:
    """The result of :func:`best_detections`, image by image.

    Args:
        nms_iou: IoU of class-wise NMS, for ablation; ``None``, OneNet's way, applies none.
    """
    detections = [Detections(*of) for of in zip(boxes, scores, labels, strict=True)]
    if nms_iou is None:
        return detections
    # batched_nms separates classes by the largest coordinate: enough only if none is negative.
    return [
        d[batched_nms(d.boxes - d.boxes.min(), d.scores, d.labels, nms_iou)] for d in detections
    ]


def detect(
    predictions: Predictions, k: int = 100, nms_iou: float | None = None
) -> list[Detections]:
    """:func:`best_detections` of predictions, image by image; see :func:`per_image`."""
    return per_image(*best_detections(predictions, k), nms_iou)


def to_image(
    detections: Detections, from_size: tuple[int, int], to_size: tuple[int, int]
) -> Detections:
    """Detections scaled to another size of their image and clipped to it; empty boxes are dropped.

    Args:
        from_size: (H, W) px of the image that the boxes refer to.
        to_size: (H, W) px of the image that they are scaled to.
    """
    (height, width), (new_height, new_width) = from_size, to_size
    boxes = detections.boxes.clone()
    boxes[:, 0::2] *= new_width / width
    boxes[:, 1::2] *= new_height / height
    boxes = clip_boxes_to_image(boxes, to_size)
    keep = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    # Indices, since the host waits for the device at every use of a mask.
    return Detections(boxes, detections.scores, detections.labels)[keep.nonzero().flatten()]
