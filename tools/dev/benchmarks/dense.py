"""The criterion written like its formulas, as the reference for OneNet's time, memory and values.

As in the original implementation, costs are computed image by image for all K classes, and the
focal loss takes a one-hot tensor of the size of the logits.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.ops import generalized_box_iou, sigmoid_focal_loss

from onenet.structures import Predictions, Targets

ALPHA, GAMMA, EPS = 0.25, 2.0, 1e-8
CLASS, L1, GIOU = 2.0, 5.0, 2.0


class DenseMatcher(nn.Module):
    """Finds the sample of minimum cost for each target, image by image."""

    @torch.no_grad()
    def forward(self, predictions: Predictions, targets: list[Targets]) -> list[Tensor]:
        """For each image, (M,) int64 indices of its targets' samples."""
        probabilities = predictions.logits.sigmoid()
        matches = []
        for p, boxes, target in zip(probabilities, predictions.boxes, targets, strict=True):
            if len(target) == 0:
                matches.append(target.labels)
                continue
            negative = (1 - ALPHA) * p**GAMMA * -(1 - p + EPS).log()
            positive = ALPHA * (1 - p) ** GAMMA * -(p + EPS).log()
            focal = positive[:, target.labels] - negative[:, target.labels]
            size = _size_of(target)
            l1 = torch.cdist(boxes / size, target.boxes / size, p=1)
            giou = generalized_box_iou(boxes, target.boxes)
            matches.append((CLASS * focal + L1 * l1 - GIOU * giou).argmin(dim=0))
        return matches


class DenseCriterion(nn.Module):
    """Minimum-cost assignment by predicted boxes, with focal, L1 and GIoU losses, all dense.

    Weights and results equal those of :class:`onenet.Criterion` with its defaults. If two targets
    share a sample, the last gives its class on devices that write in order, such as CPUs.
    """

    def __init__(self) -> None:
        super().__init__()
        self.matcher = DenseMatcher()

    def forward(self, predictions: Predictions, targets: list[Targets]) -> dict[str, Tensor]:
        """Weighted losses, the same as :meth:`onenet.Criterion.forward` gives in one process."""
        matches = self.matcher(predictions, targets)
        one_hot = torch.zeros_like(predictions.logits)
        l1 = giou = predictions.boxes.new_zeros(())
        for i, (samples, target) in enumerate(zip(matches, targets, strict=True)):
            classes = target.labels.new_full((one_hot.shape[1],), -1)
            classes[samples] = target.labels
            positives = (classes >= 0).nonzero().squeeze(1)
            one_hot[i, positives, classes[positives]] = 1
            boxes = predictions.boxes[i, samples]
            giou = giou + (1 - generalized_box_iou(boxes, target.boxes).diag()).sum()
            l1 = l1 + ((boxes - target.boxes) / _size_of(target)).abs().sum()
        focal = sigmoid_focal_loss(predictions.logits, one_hot, ALPHA, GAMMA, "sum")
        count = max(sum(map(len, targets)), 1)
        return {
            "loss_ce": CLASS * focal / count,
            "loss_giou": GIOU * giou / count,
            "loss_bbox": L1 * l1 / count,
        }


def _size_of(target: Targets) -> Tensor:
    height, width = target.image_size
    return target.boxes.new_tensor((width, height, width, height))
