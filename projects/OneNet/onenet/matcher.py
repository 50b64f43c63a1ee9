"""Assignment of samples to targets: one positive a target, no NMS afterwards."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from .costs import focal_cost
from .structures import Matches, Predictions, Targets


class NonFiniteError(FloatingPointError):
    """A cost or loss is NaN or infinite; the message names the term and the image."""


class Matcher(nn.Module, ABC):
    """Cost of samples against targets; subclasses choose from the cost matrix.

    cost = class_weight · focal + location cost (arXiv 2012.05780, equation 3).

    Args:
        location: module ``(boxes (N, 4), samples (N, 4), levels (N,), targets) -> (N, M)``, see
            :mod:`onenet.costs`; weighs its own terms.
        class_weight: weight of the classification cost; 0 leaves location alone.
        alpha, gamma: of the focal cost.
    """

    def __init__(
        self,
        *,
        location: nn.Module,
        class_weight: float = 2.0,
        alpha: float = 0.25,
        gamma: float = 2.0,
    ) -> None:
        super().__init__()
        self.location = location
        self.class_weight = class_weight
        self.alpha, self.gamma = alpha, gamma

    def cost(self, predictions: Predictions, image: int, targets: Targets) -> Tensor:
        """(N, M) float32 cost of every sample of image number ``image`` for every target."""
        cost = self.location(
            predictions.boxes[image], predictions.samples, predictions.levels, targets
        )
        if self.class_weight:
            logits = predictions.logits[image]
            focal = focal_cost(logits, targets.labels, self.alpha, self.gamma)
            cost = cost + self.class_weight * focal
        return cost

    @abstractmethod
    def choose(self, cost: Tensor) -> tuple[Tensor, Tensor]:
        """(sample, target) indices, ordered by target, from a cost matrix (N, M), M > 0."""

    @torch.no_grad()
    def forward(self, predictions: Predictions, targets: list[Targets]) -> Matches:
        """Positive samples of a batch.

        Args:
            predictions: of B images.
            targets: B of them, on the predictions' device; M = 0 gives no match.

        Raises:
            NonFiniteError: a matcher that can't choose from such a cost; names the image.
        """
        device = predictions.logits.device
        empty = torch.empty(0, dtype=torch.int64, device=device)
        images, samples, indices = [empty], [empty], [empty]
        for i, target in enumerate(targets):
            if len(target) == 0:
                continue
            try:
                sample, index = self.choose(self.cost(predictions, i, target))
            except NonFiniteError as error:
                raise NonFiniteError(f"{error}, for image {i} of the batch") from None
            images.append(torch.full_like(sample, i))
            samples.append(sample)
            indices.append(index)
        return Matches(torch.cat(images), torch.cat(samples), torch.cat(indices))


class MinCostMatcher(Matcher):
    """Every target gets its cheapest sample (the paper's choice); two targets may share one."""

    def choose(self, cost: Tensor) -> tuple[Tensor, Tensor]:
        """The row of the minimum of every column; the first of equals."""
        return cost.argmin(dim=0), torch.arange(cost.shape[1], device=cost.device)


class HungarianMatcher(Matcher):
    """One-to-one assignment of least total cost (Kuhn-Munkres, by scipy, on the CPU).

    With more targets than samples (M > N) only N targets get one.
    """

    def choose(self, cost: Tensor) -> tuple[Tensor, Tensor]:
        """Optimal pairs.

        Raises:
            NonFiniteError: the matrix holds NaN or infinity.
        """
        from scipy.optimize import linear_sum_assignment

        if not torch.isfinite(cost).all():
            raise NonFiniteError("the assignment cost is NaN or infinite")
        rows, columns = (torch.as_tensor(i) for i in linear_sum_assignment(cost.cpu().numpy()))
        order = columns.argsort()
        return rows[order].to(cost.device), columns[order].to(cost.device)
