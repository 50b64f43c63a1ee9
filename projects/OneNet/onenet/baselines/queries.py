"""What networks of queries share: they are trained and detect as OneNet does.

A query is a learnt sample without a place of its own in the image. A decoder refines all queries in
stages, and every stage gives each query class scores and a box. OneNet's criterion trains each
stage, the last one gives the detections by OneNet's top-k of (query, class) pairs, and so
``MODEL.OneNet.MATCHER``, the weights of costs and losses, ``NMS`` and ``TEST`` mean here what they
mean for OneNet. One of your own needs a subclass that defines :meth:`QueryDetector.stages`::

    @register("MyQueries")
    def build(cfg):  # MODEL.META_ARCHITECTURE "MyQueries"
        backbone = build_backbone(cfg)
        return MyQueries(**query_options(cfg, backbone), head=...)
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from onenet.assignment.criterion import Criterion
from onenet.assignment.registry import build_criterion
from onenet.config.build import frame_options
from onenet.detector import DenseDetector, named
from onenet.errors import ConfigError
from onenet.structures import Predictions, TargetBatch, send

# The values of MODEL.OneNet.MATCHER that choose by the predictions alone. Add the name of a matcher
# of yours that does so, too.
QUERY_MATCHERS = {"minimum", "hungarian"}


class QueryDetector(DenseDetector):
    """A network from images to the predictions of its decoder's stages, trained by one criterion.

    Takes the arguments of :class:`~onenet.detector.DenseDetector`. A network whose ``head`` holds
    the backbone, too, has none of its own and reads no maps::

        MyQueries(**query_options(cfg, None), head=network)
    """

    criterion: Criterion
    finding_waits = True  # Sparse R-CNN's pooler, and some of transformers' networks

    def inputs(self, images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The batch (B, 3, H', W'), and each image's own (H, W) px, (B, 2) int64."""
        sizes = torch.tensor([tuple(image.shape[-2:]) for image in images])
        return self.batch(images), send(sizes, self.pixel_mean.device)

    @abstractmethod
    def stages(self, batch: Tensor, sizes: Tensor) -> list[Predictions]:
        """The predictions of each stage of the decoder, in its order.

        Their samples are the queries' initial boxes in px of the first image (:func:`initial_boxes`
        of centre, width and height), or its points twice. No loss reads them, and pictures of
        assignments show the predicted boxes. All levels are 0; see :func:`stage_predictions`.

        Args:
            batch, sizes: of :meth:`inputs`; what lies beyond an image's size is padding.
        """

    def network(self, batch: Tensor, sizes: Tensor) -> Predictions:
        """The last stage's predictions."""
        return self.stages(batch, sizes)[-1]

    def losses(self, batch: Tensor, sizes: Tensor, targets: TargetBatch) -> dict[str, Tensor]:
        """The criterion's losses of every stage, each matched by itself.

        The first stage's are ``loss_ce``, ``loss_giou`` and ``loss_bbox``, and the number ends the
        names of the others': ``loss_ce_2`` …
        """
        losses: dict[str, Tensor] = {}
        for number, predictions in enumerate(self.stages(batch, sizes), start=1):
            name = "main" if number == 1 else f"stage_{number}"
            losses |= named(self.criterion(predictions, targets), name)
        return losses


def initial_boxes(boxes: Tensor, sizes: Tensor) -> Tensor:
    """(B, N, 4) xyxy px of every image, from boxes in parts of the image.

    Args:
        boxes: (N, 4) centre x, centre y, width, height.
        sizes: (B, 2) px, height and width of each image.
    """
    centre, half = boxes[:, :2], boxes[:, 2:] / 2
    parts = torch.cat((centre - half, centre + half), dim=1)
    return parts * sizes.flip(1).repeat(1, 2)[:, None]


def stage_predictions(logits: Tensor, boxes: Tensor, samples: Tensor) -> Predictions:
    """What a stage predicts, with every query on level 0.

    Args:
        logits: (B, N, K).
        boxes: (B, N, 4) xyxy px.
        samples: (N, 4) xyxy px, see :meth:`QueryDetector.stages`.
    """
    levels = torch.zeros(samples.shape[0], dtype=torch.int64, device=samples.device)
    return Predictions(logits, boxes.float(), samples.float(), levels)


def query_options(cfg: Any, backbone: nn.Module | None) -> dict[str, Any]:
    """The arguments of :class:`QueryDetector` but for the head.

    Raises:
        ConfigError: the config asks for an assignment by places, which queries do not have.
    """
    c, name = cfg.MODEL.OneNet, cfg.MODEL.META_ARCHITECTURE
    if c.LOCATION_COST == "predefined":
        raise ConfigError(
            f"MODEL.OneNet.LOCATION_COST is 'predefined'; expected 'predicted', as {name} has "
            "queries: they are learnt, and have neither grid points nor anchors that a cost could "
            "be computed from"
        )
    if c.MATCHER not in QUERY_MATCHERS:
        raise ConfigError(
            f"MODEL.OneNet.MATCHER is {c.MATCHER!r}; expected one of "
            f"{', '.join(sorted(QUERY_MATCHERS))}, as {name} has queries, which have no place in "
            "the image that the others choose samples by. Add a matcher of yours that reads the "
            "predictions alone to onenet.QUERY_MATCHERS"
        )
    options = frame_options(cfg, backbone)
    if backbone is None:
        options["in_features"] = ()
    return {**options, "criterion": build_criterion(cfg)}
