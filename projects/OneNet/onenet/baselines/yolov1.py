"""YOLOv1 (arXiv 1506.02640): a grid of cells, each with one class and a few boxes.

An object belongs to the cell of its centre, and trains the one box of that cell that fits it best
at the moment. Everything is learnt by squared errors, and NMS removes duplicates. The backbone is
OneNet's ResNet instead of the paper's network of 24 layers; what follows it is the paper's.

P is the number of boxes of a cell (the paper's B), S the cells along a side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onenet.assignment.criterion import mean_targets
from onenet.detector import DenseDetector
from onenet.inference.postprocess import best_detections, per_image
from onenet.ops.boxes import iou, point_grid
from onenet.structures import Detections, Predictions, TargetBatch, Targets


@dataclass(frozen=True)
class Cells:
    """The head's outputs for B images of S × S cells, row by row; all float32, none bounded.

    Attributes:
        places: (B, S², P, 4): x and y of the box's centre from the cell's upper left corner, in
            cells; square roots of the box's width and height in parts of the image's.
        confidence: (B, S², P): whether there is an object, times the IoU of the box with it.
        classes: (B, S², K): the object's class, if there is one.
        grid: S.
    """

    places: Tensor
    confidence: Tensor
    classes: Tensor
    grid: int

    def boxes(self) -> Tensor:
        """(B, S², P, 4) xyxy in parts of the image's width and height."""
        corners = point_grid(self.grid, self.grid, 1, self.places.device)
        centres = (self.places[..., :2] + corners[:, None]) / self.grid
        half = self.places[..., 2:] ** 2 / 2
        return torch.cat((centres - half, centres + half), dim=-1)


class YOLOHead(nn.Module):
    """Four 3×3 convolutions, the second of stride 2, and two fully connected layers (section 2.1).

    Each convolution has a batch norm, as in the authors' later code. The last layer is kept in two:
    the rows that depend on the number of classes, ``cls_score``, and the others.

    Args:
        in_channels: C of the backbone's map.
        in_size: side of that map, in cells of its own.
        num_classes: K.
        grid: S.
        boxes: P.
        channels: of the convolutions.
        hidden: of the first fully connected layer.
        dropout: the share of that layer's outputs that training leaves out.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        in_size: int,
        num_classes: int,
        grid: int = 7,
        boxes: int = 2,
        channels: int = 1024,
        hidden: int = 4096,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.grid = grid
        layers: list[nn.Module] = []
        for i, (inner, outer) in enumerate(pairwise([in_channels, *[channels] * 4])):
            stride = 2 if i == 1 else 1
            conv = nn.Conv2d(inner, outer, 3, stride=stride, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(outer), nn.LeakyReLU(0.1, inplace=True)]
        self.convs = nn.Sequential(*layers)
        self.hidden = nn.Linear(channels * ((in_size + 1) // 2) ** 2, hidden)
        self.dropout = nn.Dropout(dropout)
        self.box_pred = nn.Linear(hidden, grid**2 * boxes * 5)
        self.cls_score = nn.Linear(hidden, grid**2 * num_classes)
        for layer in (self.box_pred, self.cls_score):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)
        with torch.no_grad():
            # Boxes start in the middle of their cell, a quarter of the image wide and high. So all
            # boxes of a cell overlap with its object, and either can become responsible.
            self.box_pred.bias.view(-1, 5)[:, :4] = 0.5

    def forward(self, features: list[Tensor]) -> Cells:
        """Cells from the single map (B, C, H, W) in ``features``."""
        x = self.convs(features[0]).flatten(1)
        x = self.dropout(F.leaky_relu(self.hidden(x), 0.1))
        found = self.box_pred(x).float().reshape(len(x), self.grid**2, -1, 5)
        classes = self.cls_score(x).float().reshape(len(x), self.grid**2, -1)
        return Cells(found[..., :4], found[..., 4], classes, self.grid)


def keepers(cell: Tensor, areas: Tensor, cells: int) -> Tensor:
    """Which objects keep their cell: the largest of each cell; the first of equal ones.

    Args:
        cell: (T,) int64.
        areas: (T,).
        cells: how many there are.

    Returns:
        (T,) bool.
    """
    order = areas.argsort(descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=cell.device))
    best = rank.new_full((cells,), len(order)).scatter_reduce_(0, cell, rank, "amin")
    return best[cell] == rank


class YOLOCriterion(nn.Module):
    """The five sums of squared errors of equation 3.

    A cell has one class, so it learns one object: the largest whose centre it holds. The others
    are not trained. Of the cell's boxes, the one of highest IoU with the object (the first of equal
    ones) is responsible for it. Its confidence learns that IoU; the confidence of all other boxes
    of the image learns 0.

    Args:
        coord_weight, noobj_weight: the paper's λ.
    """

    def __init__(self, *, coord_weight: float = 5.0, noobj_weight: float = 0.5) -> None:
        super().__init__()
        self.coord_weight, self.noobj_weight = coord_weight, noobj_weight

    def forward(self, cells: Cells, targets: Sequence[Targets] | TargetBatch) -> dict[str, Tensor]:
        """Weighted losses, each a scalar float32 over the mean number of targets.

        Args:
            cells: of B images.
            targets: of these images. A centre on the border or beyond counts for the cell inside.

        Returns:
            ``loss_centre``, ``loss_size``, ``loss_object`` (confidence of responsible boxes),
            ``loss_empty`` (confidence of the others) and ``loss_class``.
        """
        device = cells.places.device
        targets = TargetBatch.of(targets, device)
        boxes = targets.boxes / targets.scales
        sizes = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0)
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2 * cells.grid
        corners = centres.floor().clamp(0, cells.grid - 1)
        column, row = corners.long().unbind(dim=1)
        cell = (targets.image * cells.grid + row) * cells.grid + column

        confidence = cells.confidence.flatten(0, 1)
        kept = keepers(cell, sizes.prod(dim=1), len(confidence))
        with torch.no_grad():
            predicted = cells.boxes().flatten(0, 1)[cell] * targets.scales[:, None]
            fit, best = iou(predicted, targets.boxes[:, None]).max(dim=1)
        responsible = torch.zeros_like(confidence).index_put_(
            (cell, best), kept.float(), accumulate=True
        )
        place = cells.places.flatten(0, 1)[cell, best]
        labels = torch.arange(cells.classes.shape[-1], device=device) == targets.labels[:, None]
        errors = {
            "loss_centre": self.coord_weight * (place[:, :2] - (centres - corners)) ** 2,
            "loss_size": self.coord_weight * (place[:, 2:] - sizes.sqrt()) ** 2,
            "loss_object": (confidence[cell, best] - fit)[:, None] ** 2,
            "loss_class": (cells.classes.flatten(0, 1)[cell] - labels.float()) ** 2,
        }
        losses = {name: (kept[:, None] * error).sum() for name, error in errors.items()}
        losses["loss_empty"] = self.noobj_weight * ((1 - responsible) * confidence**2).sum()
        normaliser = mean_targets(len(targets), device)
        return {name: loss / normaliser for name, loss in losses.items()}


class YOLOv1(DenseDetector):
    """A :class:`YOLOHead` on images that are resized to a square, and a :class:`YOLOCriterion`.

    Args:
        input_size: the square's side, px.
        nms_iou: of class-wise NMS; 1 leaves every box.
        options: the others of :class:`~onenet.detector.DenseDetector`.
    """

    head: YOLOHead
    criterion: YOLOCriterion

    def __init__(self, *, input_size: int = 448, nms_iou: float = 0.5, **options: Any) -> None:
        super().__init__(nms_iou=nms_iou, **options)
        self.input_size = input_size

    def batch(self, images: Sequence[Tensor]) -> Tensor:
        """As :meth:`DenseDetector.batch`, of images stretched to the square."""
        device, size = self.pixel_mean.device, (self.input_size,) * 2
        sent = [image.to(device, non_blocking=True).float()[None] for image in images]
        return super().batch(
            [F.interpolate(x, size, mode="bilinear", antialias=True)[0] for x in sent]
        )

    def network(self, batch: Tensor) -> Predictions:
        """Every box with the scores class × confidence, before the sigmoid; in px of the square.

        The samples are the middles of the cells. A score of 0 or less is -inf.
        """
        cells = self.head(self.features(batch))
        boxes = self.input_size * cells.boxes().flatten(1, 2)
        scores = cells.confidence.clamp(min=0)[..., None] * cells.classes.clamp(min=0)[:, :, None]
        middles = point_grid(cells.grid, cells.grid, 1, boxes.device) + 0.5
        middles = middles.repeat_interleave(cells.confidence.shape[-1], dim=0)
        return Predictions(
            logits=scores.clamp(max=1).flatten(1, 2).logit(),
            boxes=boxes,
            samples=(middles * self.input_size / cells.grid).repeat(1, 2),
            levels=torch.zeros(boxes.shape[1], dtype=torch.int64, device=boxes.device),
        )

    def losses(self, batch: Tensor, targets: TargetBatch) -> dict[str, Tensor]:
        """The five losses of :class:`YOLOCriterion`."""
        return self.criterion(self.head(self.features(batch)), targets)

    def find(self, batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`DenseDetector.find`, but all boxes with all classes: NMS comes first."""
        predictions = self.network(batch)
        return best_detections(predictions, predictions.logits[0].numel())

    def _detect(self, images: Sequence[Tensor]) -> list[Detections]:
        """Fewer than ``max_detections`` where fewer have a score above 0."""
        if not images:
            return []
        # A box's IoU is the same in the square and in the image.
        found = per_image(*self.find(self.batch(images)), self.nms_iou)
        # Best first, so those with a score come first; all are counted in one read.
        counts = torch.stack([(one.scores > 0).sum() for one in found]).tolist()
        return [
            self._in_image(one[: min(count, self.max_detections)], image)
            for one, count, image in zip(found, counts, images, strict=True)
        ]

    def _in_image(self, found: Detections, image: Tensor) -> Detections:
        height, width = image.shape[-2:]
        scale = found.boxes.new_tensor([width, height, width, height]) / self.input_size
        return Detections(found.boxes * scale, found.scores, found.labels)
