"""Losses of matched samples: focal, L1 and GIoU (arXiv 2012.05780, equation 2)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from onenet.errors import NonFiniteError
from onenet.ops.boxes import giou
from onenet.ops.focal import sparse_focal_loss
from onenet.structures import Matches, Predictions, TargetBatch, Targets

from .costs import ALPHA, CLASS_WEIGHT, GAMMA, GIOU_WEIGHT, L1_WEIGHT
from .matchers import Matcher

logger = logging.getLogger(__name__)


class Criterion(nn.Module):
    """Match predictions with targets and compute the weighted losses.

    loss = 2 · focal + 5 · L1 + 2 · GIoU, over the mean number of targets.

    Args:
        matcher: see :mod:`onenet.assignment.matchers`.
        class_weight, l1_weight, giou_weight: weights of the three losses.
        alpha, gamma: of the focal loss.
    """

    def __init__(
        self,
        *,
        matcher: Matcher,
        class_weight: float = CLASS_WEIGHT,
        l1_weight: float = L1_WEIGHT,
        giou_weight: float = GIOU_WEIGHT,
        alpha: float = ALPHA,
        gamma: float = GAMMA,
    ) -> None:
        super().__init__()
        self.matcher = matcher
        self.weights: Mapping[str, float] = {
            "loss_ce": class_weight,
            "loss_giou": giou_weight,
            "loss_bbox": l1_weight,
        }
        self.alpha, self.gamma = alpha, gamma

    def forward(
        self, predictions: Predictions, targets: Sequence[Targets] | TargetBatch
    ) -> dict[str, Tensor]:
        """Weighted losses, each a scalar float32 over the mean number of targets.

        Args:
            predictions: of B images.
            targets: of these images, on any device.

        Returns:
            ``loss_ce`` (focal, over all samples and classes), ``loss_giou`` and ``loss_bbox`` (L1
            in parts of the image's size), both over the matched pairs. All are NaN, and so is an
            additional ``cost``, where the matcher cannot choose from the cost; a warning says why.
        """
        device = predictions.logits.device
        targets = TargetBatch.of(targets, device)
        try:
            losses = self.losses(predictions, targets, self.matcher(predictions, targets))
        except NonFiniteError as error:
            # Not raised: processes whose costs are finite wait for this one in mean_targets().
            logger.warning("%s", error)
            nan = torch.nan * (predictions.logits.sum() + predictions.boxes.sum())
            losses = dict.fromkeys([*self.weights, "cost"], nan)
        normaliser = mean_targets(len(targets), device)
        return {
            name: self.weights.get(name, 1.0) * loss / normaliser for name, loss in losses.items()
        }

    def losses(
        self, predictions: Predictions, targets: Sequence[Targets] | TargetBatch, matches: Matches
    ) -> dict[str, Tensor]:
        """The three losses of given matches, summed, neither weighted nor normalised."""
        targets = TargetBatch.of(targets, predictions.logits.device)
        number = targets.starts[matches.image] + matches.target
        boxes, scales = targets.boxes[number], targets.scales[number]
        predicted = predictions.boxes[matches.image, matches.sample].float()

        last = last_of_each_sample(matches, predictions.logits.shape[:2])
        positives = (matches.image, matches.sample, targets.labels[number][last])
        is_last = last == torch.arange(len(last), device=last.device)
        return {
            "loss_ce": sparse_focal_loss(
                predictions.logits, positives, self.alpha, self.gamma, is_last
            ),
            "loss_giou": (1 - giou(predicted, boxes)).sum(),
            "loss_bbox": ((predicted - boxes) / scales).abs().sum(),
        }


def last_of_each_sample(matches: Matches, shape: tuple[int, int]) -> Tensor:
    """(P,) int64: for each match, the number of the last match with its sample and image.

    Two targets may share a sample; the last of them gives its class.

    Args:
        matches: P of them.
        shape: images and samples, B and N.
    """
    images, samples = shape
    slot = matches.image * samples + matches.sample
    number = torch.arange(len(slot), device=slot.device)
    last = number.new_zeros(images * samples)
    return last.scatter_reduce_(0, slot, number, "amax")[slot]


def mean_targets(count: int, device: torch.device) -> Tensor:
    """Scalar float32: the mean over all processes of their numbers of targets, at least 1."""
    mean = torch.full((), float(count), device=device)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(mean)
        mean /= dist.get_world_size()
    return mean.clamp(min=1)
