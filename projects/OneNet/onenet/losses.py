"""Losses of matched samples: focal, L1 and GIoU (arXiv 2012.05780, equation 2)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from .boxes import giou, image_scale
from .matcher import Matcher
from .structures import Matches, Predictions, Targets


def sparse_focal_loss(
    logits: Tensor, positives: tuple[Tensor, ...], alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Sigmoid focal loss (arXiv 1708.02002), summed, where few entries are positive.

    All entries are counted as negatives, then the positives are put right: no target tensor of
    the logits' size is made.

    Args:
        logits: any shape; computed in float32.
        positives: index tensors, as in ``logits[positives]``, without repetitions.

    Returns:
        Scalar float32.
    """
    logits = logits.float()
    at_positives = logits[positives]

    def negative(x: Tensor) -> Tensor:
        return (1 - alpha) * (x.sigmoid() ** gamma * F.softplus(x)).sum()

    positive = alpha * ((-at_positives).sigmoid() ** gamma * F.softplus(-at_positives)).sum()
    return negative(logits) - negative(at_positives) + positive


def last_of_each_sample(matches: Matches) -> Tensor:
    """(T,) bool: no later match has the same sample of the same image.

    Two targets may share a sample; the last of them gives its class.
    """
    same = (matches.image[:, None] == matches.image) & (matches.sample[:, None] == matches.sample)
    return ~same.triu(diagonal=1).any(dim=1)


def mean_targets(targets: list[Targets], device: torch.device) -> Tensor:
    """Scalar float32: mean number of targets over all processes, at least 1."""
    count = torch.tensor(float(sum(map(len, targets))), device=device)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(count)
        count = count / dist.get_world_size()
    return count.clamp(min=1)


class Criterion(nn.Module):
    """Match predictions with targets and compute the weighted losses.

    Args:
        matcher: see :mod:`onenet.matcher`.
        class_weight, l1_weight, giou_weight: what the losses are multiplied by.
        alpha, gamma: of the focal loss.
    """

    def __init__(
        self,
        *,
        matcher: Matcher,
        class_weight: float = 2.0,
        l1_weight: float = 5.0,
        giou_weight: float = 2.0,
        alpha: float = 0.25,
        gamma: float = 2.0,
    ) -> None:
        super().__init__()
        self.matcher = matcher
        self.weights: Mapping[str, float] = {
            "loss_ce": class_weight,
            "loss_giou": giou_weight,
            "loss_bbox": l1_weight,
        }
        self.alpha, self.gamma = alpha, gamma

    def forward(self, predictions: Predictions, targets: list[Targets]) -> dict[str, Tensor]:
        """Weighted losses, each a scalar float32 over the mean number of targets.

        Args:
            predictions: of B images.
            targets: B of them, on the predictions' device.

        Returns:
            ``loss_ce`` (focal, all samples and classes), ``loss_giou`` and ``loss_bbox`` (L1 in
            parts of the image's size), both over the matched pairs.
        """
        matches = self.matcher(predictions, targets)
        losses = self.losses(predictions, targets, matches)
        normaliser = mean_targets(targets, predictions.logits.device)
        return {name: self.weights[name] * loss / normaliser for name, loss in losses.items()}

    def losses(
        self, predictions: Predictions, targets: list[Targets], matches: Matches
    ) -> dict[str, Tensor]:
        """The three losses of given matches, summed, neither weighted nor normalised."""
        starts = torch.tensor([0, *map(len, targets)]).cumsum(0).to(matches.image)
        flat = starts[matches.image] + matches.target
        labels = torch.cat([t.labels for t in targets])[flat]
        boxes = torch.cat([t.boxes for t in targets])[flat].float()
        scales = torch.stack([image_scale(t.image_size, boxes) for t in targets])[matches.image]

        keep = last_of_each_sample(matches)
        positives = (matches.image[keep], matches.sample[keep], labels[keep])
        predicted = predictions.boxes[matches.image, matches.sample].float()
        return {
            "loss_ce": sparse_focal_loss(predictions.logits, positives, self.alpha, self.gamma),
            "loss_giou": (1 - giou(predicted, boxes)).sum(),
            "loss_bbox": ((predicted - boxes) / scales).abs().sum(),
        }
