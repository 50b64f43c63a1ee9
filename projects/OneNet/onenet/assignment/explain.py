"""Which sample each object of an image gets, and why: the data behind the paper's figure 5."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from onenet.structures import Predictions, Targets

from .matchers import Matcher, MinCostMatcher

# The weight of each term: an attribute of the matcher or of its location cost.
_WEIGHTS = {"class": "class_weight", "L1": "l1_weight", "GIoU": "giou_weight"}


@dataclass(frozen=True)
class Assignment:
    """The samples of one image and their costs for its M objects; on the CPU.

    Attributes:
        targets: the objects.
        samples: (N, 4) xyxy px, the anchors, or the grid points twice; for queries, their
            predicted boxes.
        levels: (N,) int64.
        positives: (M,) int64, the sample that the matcher gives each object; -1 for none.
        by_location: (M,) int64, the same under predefined location cost alone; ``None`` for
            queries, which have no such cost.
        terms: the weighted terms of the matcher's cost, by name, (N, M) each.
    """

    targets: Targets
    samples: Tensor
    levels: Tensor
    positives: Tensor
    by_location: Tensor | None
    terms: dict[str, Tensor]

    @property
    def cost(self) -> Tensor:
        """(N, M), the sum of the terms."""
        return torch.stack(list(self.terms.values())).sum(dim=0)

    @property
    def points(self) -> Tensor:
        """(N, 2) centres of the samples, px."""
        return (self.samples[:, :2] + self.samples[:, 2:]) / 2

    @property
    def kinds(self) -> list[Tensor]:
        """``positives``, and ``by_location`` if there is one."""
        return [kind for kind in (self.positives, self.by_location) if kind is not None]

    @property
    def inside(self) -> Tensor:
        """(M,) bool: whether each positive lies within its object's box."""
        points, boxes = self.points[self.positives], self.targets.boxes
        within = ((points >= boxes[:, :2]) & (points <= boxes[:, 2:])).all(dim=1)
        return within & (self.positives >= 0)

    def level_of(self, number: int) -> int:
        """The level of an object's positive, or of its cheapest sample if it has none."""
        positive = int(self.positives[number])
        sample = positive if positive >= 0 else int(self.cost[:, number].argmin())
        return int(self.levels[sample])

    def around(self, number: int, margin: float) -> tuple[float, float, float, float]:
        """Window of the image, xyxy px, with an object and its positives.

        Args:
            margin: how much is shown on every side of the object, in parts of its own sides.
        """
        box = self.targets.boxes[number]
        reach = margin * (box[2:] - box[:2])
        samples = torch.stack([positives[number] for positives in self.kinds])
        points = self.points[samples[samples >= 0]]
        height, width = self.targets.image_size
        low = torch.cat((box[None, :2] - reach, points)).amin(dim=0).clamp(min=0)
        high = torch.cat((box[None, 2:] + reach, points)).amax(dim=0)
        return *low.tolist(), *torch.minimum(high, box.new_tensor((width, height))).tolist()


@torch.no_grad()
def assign(
    predictions: Predictions, targets: Targets, matcher: Matcher, predefined: nn.Module | None
) -> Assignment:
    """The assignment that a matcher makes for one image.

    Args:
        predictions: of this image alone (B = 1).
        targets: its objects.
        matcher: the model's.
        predefined: location cost of the samples, as in
            :class:`~onenet.assignment.matchers.Matcher`; for the positives of a detector that
            looks at the location alone. ``None`` for queries.
    """
    targets = targets.to(predictions.logits.device)
    by_location = None
    if predefined is not None:
        alone = MinCostMatcher(location=predefined, class_weight=0)
        by_location = _positives(alone, predictions, targets)
    terms = cost_terms(predictions, targets, matcher)
    return Assignment(
        targets=targets.to("cpu"),
        samples=(predictions.boxes[0] if predefined is None else predictions.samples).cpu(),
        levels=predictions.levels.cpu(),
        positives=_positives(matcher, predictions, targets),
        by_location=by_location,
        terms={name: term.cpu() for name, term in terms.items()},
    )


def _positives(matcher: Matcher, predictions: Predictions, targets: Targets) -> Tensor:
    matches = matcher(predictions, [targets])
    positives = torch.full((len(targets),), -1)
    positives[matches.target.cpu()] = matches.sample.cpu()
    return positives


def cost_terms(predictions: Predictions, targets: Targets, matcher: Matcher) -> dict[str, Tensor]:
    """The weighted terms of the matcher's cost for one image (B = 1), (N, M) each.

    "class", "L1" and "GIoU", where their weight is not 0, and "other" for the rest, if any; their
    sum is the cost.
    """
    matcher = deepcopy(matcher)
    weights = {}
    for name, attribute in _WEIGHTS.items():
        for module in (matcher, matcher.location):
            if weight := getattr(module, attribute, 0.0):
                weights[name] = (module, attribute, weight)
                setattr(module, attribute, 0.0)
    other = matcher.cost(predictions, 0, targets)
    terms = {}
    for name, (module, attribute, weight) in weights.items():
        setattr(module, attribute, weight)
        # Infinite in both where the matcher rules a sample out.
        terms[name] = (matcher.cost(predictions, 0, targets) - other).nan_to_num(nan=0.0)
        setattr(module, attribute, 0.0)
    return {**terms, "other": other} if other.any() else terms
