"""Assignment of samples to targets: one positive for each target, so that NMS is not needed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from onenet.errors import NonFiniteError
from onenet.ops.boxes import by_coordinate
from onenet.ops.chunks import chunks
from onenet.structures import Matches, Predictions, TargetBatch, Targets

from .costs import ALPHA, CLASS_WEIGHT, GAMMA, focal_cost


class Matcher(nn.Module, ABC):
    """Cost of samples against targets; subclasses choose from the cost matrix.

    cost = class_weight · focal + location cost (arXiv 2012.05780, equation 3).

    Args:
        location: ``(predictions, targets) -> (N, T)`` with
            :class:`~onenet.structures.Predictions` of B images and a
            :class:`~onenet.structures.TargetBatch` of T targets; weighs its own terms, see
            :mod:`onenet.assignment.costs`.
        class_weight: weight of the classification cost; 0 leaves location alone.
        alpha, gamma: of the focal cost.

    Attributes:
        columnwise: whether :meth:`choose` decides on every column by itself. It then gets the
            columns of several images at once, otherwise those of one image. False for a class
            that defines ``choose`` and does not set this.
        one_to_many: whether a target may get several samples; the losses are then over the mean
            number of positives instead of targets.
    """

    columnwise = False
    one_to_many = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "choose" in vars(cls):
            cls.columnwise = vars(cls).get("columnwise", False)

    def __init__(
        self,
        *,
        location: nn.Module,
        class_weight: float = CLASS_WEIGHT,
        alpha: float = ALPHA,
        gamma: float = GAMMA,
    ) -> None:
        super().__init__()
        self.location = location
        self.class_weight = class_weight
        self.alpha, self.gamma = alpha, gamma

    @torch.no_grad()
    def costs(self, predictions: Predictions, targets: TargetBatch) -> Tensor:
        """(N, T) float32 cost of giving each target a sample of its own image.

        Override this to add a term: the other methods call it, with a part of the batch's targets
        at a time.
        """
        cost = self.location(predictions, targets)
        if self.class_weight:
            focal = focal_cost(predictions.logits, targets, self.alpha, self.gamma)
            cost = cost.add(focal, alpha=self.class_weight)
        return cost

    def cost(self, predictions: Predictions, image: int, targets: Targets) -> Tensor:
        """(N, M) float32 cost of every sample of image number ``image`` for every target."""
        one = replace(
            predictions,
            logits=predictions.logits[image : image + 1],
            boxes=predictions.boxes[image : image + 1],
        )
        batch = TargetBatch.of([targets], predictions.logits.device)
        return self.costs(one, batch)

    @abstractmethod
    def choose(self, cost: Tensor) -> tuple[Tensor, Tensor]:
        """Indices of samples and of their targets, ordered by target, from (N, M) costs, M > 0."""

    def ignored(self, cost: Tensor) -> Tensor | None:
        """(N,) bool, the samples of an image that are neither positive nor negative.

        ``None``: there are none, as in a batch without targets. Columnwise matchers are not asked.

        Args:
            cost: (N, M) as :meth:`choose` gets it.
        """
        return None

    @torch.no_grad()
    def forward(
        self, predictions: Predictions, targets: Sequence[Targets] | TargetBatch
    ) -> Matches:
        """Positive samples of a batch.

        Args:
            predictions: of B images.
            targets: of these images, on any device; M = 0 gives no match.

        Raises:
            NonFiniteError: the matcher cannot choose from a cost that is not finite; names the
                image.
        """
        targets = TargetBatch.of(targets, predictions.logits.device)
        if len(targets) == 0:
            return Matches(targets.image, *targets.image.new_empty(2, 0))
        # Not replace(), which torch 2.4 cannot compile.
        predictions = Predictions(
            predictions.logits,
            by_coordinate(predictions.boxes),
            by_coordinate(predictions.samples),
            predictions.levels,
        )
        masks: dict[int, Tensor] = {}
        if self.columnwise:
            chosen = self._choose_by_column(predictions, targets)
        else:
            chosen = self._choose_by_image(predictions, targets, masks)
        sample, number = map(torch.cat, zip(*chosen, strict=True))
        image = targets.image[number]
        ignored = None
        if masks:
            ignored = torch.zeros_like(predictions.logits[..., 0], dtype=torch.bool)
            for row, mask in masks.items():
                ignored[row] = mask
        return Matches(image, sample, number - targets.starts[image], ignored)

    def _choose_by_column(
        self, predictions: Predictions, targets: TargetBatch
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Samples and the numbers of their targets in the batch, some columns at a time."""
        start = 0
        for cost in self._costs_in_parts(predictions, targets):
            sample, column = self.choose(cost)
            yield sample, start + column
            start += cost.shape[1]

    def _choose_by_image(
        self, predictions: Predictions, targets: TargetBatch, masks: dict[int, Tensor]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The same, one image at a time; ``masks`` gets what :meth:`ignored` gives, by image."""
        start = 0
        for image, count in enumerate(targets.counts.tolist()):
            if count == 0:
                continue
            here = targets[start : start + count]
            cost = torch.cat(list(self._costs_in_parts(predictions, here)), dim=1)
            try:
                sample, column = self.choose(cost)
            except NonFiniteError as error:
                raise NonFiniteError(f"{error}, for image {image} of the batch") from None
            if (mask := self.ignored(cost)) is not None:
                masks[image] = mask
            yield sample, start + column
            start += count

    def _costs_in_parts(self, predictions: Predictions, targets: TargetBatch) -> Iterator[Tensor]:
        samples, device = predictions.boxes.shape[1], predictions.boxes.device
        for part in chunks(len(targets), samples, device):
            yield self.costs(predictions, targets[part])


class MinCostMatcher(Matcher):
    """Every target gets its cheapest sample (the paper's choice); targets may share one."""

    columnwise = True

    def choose(self, cost: Tensor) -> tuple[Tensor, Tensor]:
        """The row of each column's minimum, the first of equals."""
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
