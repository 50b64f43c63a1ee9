"""Every DETR of the library transformers as a meta-architecture, through one adapter.

``MODEL.TRANSFORMERS.LOSS`` chooses what trains a network: the library's assignment and losses, or,
where the decoder's layers allow it, OneNet's criterion. Inference is the same: the best (query,
class) pairs without NMS. The backbone is that of ``MODEL.BACKBONE``, as for OneNet, or the
library's own. The library is imported when a network is built.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from torchvision.ops import box_convert
from torchvision.transforms.v2.functional import resize

from onenet.backbones.registry import build_backbone
from onenet.backbones.timm_names import ADDRESS as TIMM
from onenet.checkpoints.hub import PREFIX
from onenet.checkpoints.weights import torchvision_model
from onenet.config.build import frame_options, head_shapes
from onenet.data.batching import DIVISIBILITY
from onenet.errors import ConfigError
from onenet.structures import Predictions, TargetBatch, send

from .queries import QueryDetector, initial_boxes, query_options, stage_predictions
from .registry import register
from .transformers_config import ARCHITECTURES, SECTION, Architecture, build_network
from .transformers_weights import class_layers, read_weights, set_prior

_TOO_FEW = "selected index k out of range"  # torch's, where the library looks for its best places


class Detr(QueryDetector):
    """A network of the library with OneNet's inputs and outputs.

    Takes the arguments of :class:`~onenet.detector.DenseDetector` with

    Args:
        head: the library's network, with or without the backbone.
        criterion: OneNet's, on every decoder layer; ``None``: the library's losses.
        name: of the architecture, in :data:`~.transformers_config.ARCHITECTURES`.
        side: px of the square that every image is resized to; 0: images keep their shape.

    Attributes:
        class_layers: names of the parameters that depend on the number of classes.
    """

    def __init__(self, *, name: str, side: int = 0, **options: Any) -> None:
        super().__init__(**options)
        self.name, self.side = name, side
        self.kind: Architecture = ARCHITECTURES[name]
        if self.kind.softmax:  # a query has one class
            self.max_detections = min(self.max_detections, self.head.config.num_queries)
        self.class_layers = class_layers(self.head)
        # The stand-ins for a backbone; see .transformers_maps.
        self._stand_ins = [module for module in self.head.modules() if hasattr(module, "maps")]
        # The library calls its loss with more than a network returns; what is kept of a call.
        self._kept: Any = None
        self._library_loss = self.head.loss_function
        self.head.loss_function = self._weigh if self.criterion is None else self._keep

    def inputs(self, images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The batch, of squares if ``side`` is not 0, and each image's (H, W) px before that."""
        if not self.side:
            return super().inputs(images)
        sizes = torch.tensor([tuple(image.shape[-2:]) for image in images])
        squares = [resize(image, [self.side, self.side], antialias=True) for image in images]
        return self.batch(squares), send(sizes, self.pixel_mean.device)

    def network(self, batch: Tensor, sizes: Tensor) -> Predictions:
        """The last decoder layer's predictions."""
        found = self._run(batch, sizes)
        logits = best_class(found.logits) if self.kind.softmax else found.logits
        return self._predictions(logits, found.pred_boxes, found, batch, sizes)

    def stages(self, batch: Tensor, sizes: Tensor) -> list[Predictions]:
        """The predictions of each decoder layer, for OneNet's criterion."""
        found = self._run(batch, sizes, labels=[])
        (logits, boxes), self._kept = self._kept, None
        return [
            self._predictions(*layer, found, batch, sizes)
            for layer in zip(logits.float(), boxes, strict=True)
        ]

    def losses(self, batch: Tensor, sizes: Tensor, targets: TargetBatch) -> dict[str, Tensor]:
        """The criterion's losses of every decoder layer, or the library's.

        The library's are weighted as it weights them, and summed by kind over decoder layers and
        denoising: ``loss_ce`` (or ``loss_vfl``, ``loss_mal``), ``loss_bbox``, ``loss_giou``, …
        """
        if self.criterion is not None:
            return super().losses(batch, sizes, targets)
        labels = self._labels(batch, sizes, targets)
        self._run(batch, sizes, labels)
        losses, self._kept = self._kept, None
        if not any(len(label["boxes"]) for label in labels):
            # Nothing is denoised: processes would wait for the gradients of what has none.
            rest = [p.sum() for n, p in self.head.named_parameters() if "denoising" in n]
            losses["loss_bbox"] = losses["loss_bbox"] + 0 * sum(rest)
        return losses

    def _run(self, batch: Tensor, sizes: Tensor, labels: list[Any] | None = None) -> Any:
        """The library's output; with labels, it also calls its loss."""
        if self._stand_ins:
            maps = self.features(batch)
            for stand_in in self._stand_ins:
                stand_in.maps = maps
        mask = None
        if self.kind.masked and not self.side:
            rows, columns = (torch.arange(n, device=batch.device) for n in batch.shape[-2:])
            inside = (rows < sizes[:, :1])[:, :, None] & (columns < sizes[:, 1:])[:, None]
            mask = inside.long()
        try:
            return self.head(pixel_values=batch, pixel_mask=mask, labels=labels)
        except RuntimeError as error:
            if _TOO_FEW not in str(error):
                raise
            raise ConfigError(
                f"{SECTION}.CONFIG.num_queries is {self.head.config.num_queries}, but an image of "
                f"{batch.shape[-2]} x {batch.shape[-1]} px has fewer places to choose from; "
                "expected fewer queries, or larger images (INPUT.MIN_SIZE_TRAIN, MIN_SIZE_TEST)"
            ) from error

    def _extent(self, batch: Tensor, sizes: Tensor) -> Tensor:
        """(B, 4) px, (W, H, W, H) that boxes are parts of."""
        if not self.kind.masked and not self.side:
            sizes = sizes.new_tensor(batch.shape[-2:]).expand_as(sizes)
        return sizes.flip(1).repeat(1, 2).float()

    def _predictions(
        self, logits: Tensor, boxes: Tensor, found: Any, batch: Tensor, sizes: Tensor
    ) -> Predictions:
        extent = self._extent(batch, sizes)
        corners = box_convert(boxes.float(), "cxcywh", "xyxy") * extent[:, None]
        whole = boxes.new_tensor([[0.5, 0.5, 1.0, 1.0]]).expand(boxes.shape[1], 4)
        start = getattr(found, "init_reference_points", None)
        if start is not None:
            whole = torch.cat((start[0], torch.zeros_like(start[0])), dim=1)[:, :4]
        elif self.name == "DabDetr":
            whole = self.head.model.query_refpoint_embeddings.weight.sigmoid()
        shape = extent[:1, :2].flip(1)
        return stage_predictions(logits, corners, initial_boxes(whole.detach(), shape)[0])

    def _labels(
        self, batch: Tensor, sizes: Tensor, targets: TargetBatch
    ) -> list[dict[str, Tensor]]:
        """The library's targets; boxes without area, which it refuses, are left out."""
        area = (targets.boxes[:, 2:] > targets.boxes[:, :2]).all(dim=1)
        image, labels = targets.image[area], targets.labels[area]
        parts = targets.boxes[area] / self._extent(batch, sizes)[image]
        counts = image.bincount(minlength=len(batch)).tolist()
        boxes = box_convert(parts, "xyxy", "cxcywh").split(counts)
        return [
            {"class_labels": label, "boxes": box}
            for label, box in zip(labels.split(counts), boxes, strict=True)
        ]

    def _keep(
        self, logits: Tensor, labels: Any, device: Any, boxes: Tensor, config: Any,
        all_logits: Tensor | None = None, all_boxes: Tensor | None = None, *_: Any, **__: Any,
    ) -> tuple[Tensor, dict[str, Tensor], None]:  # fmt: skip
        """Stands in for the library's loss; keeps (L, B, N, K) and (L, B, N, 4) of L layers."""
        if all_logits is None:
            all_logits, all_boxes = logits[None], boxes[None]
        self._kept = all_logits, all_boxes
        return logits.sum(), {}, None

    def _weigh(self, logits: Tensor, labels: Any, *rest: Any, **more: Any) -> Any:
        """Calls the library's loss in float32 and keeps its terms, weighted.

        The library gives a sum, its terms, and not the weights between them: these are the sum's
        derivatives. Where no gradients are wanted, the graph for that holds the loss alone.
        """
        wanted = torch.is_grad_enabled()

        def ready(value: Any) -> Any:
            if not (torch.is_tensor(value) and value.is_floating_point()):
                return value
            return value.float() if wanted else value.detach().float().requires_grad_()

        with torch.autocast(logits.device.type, enabled=False), torch.enable_grad():
            result = self._library_loss(
                ready(logits), labels, *tree_map(ready, rest), **tree_map(ready, more)
            )
            terms = {name: term for name, term in result[1].items() if term.requires_grad}
            weights = torch.autograd.grad(
                result[0], list(terms.values()), retain_graph=True, allow_unused=True
            )
        losses: dict[str, Tensor] = {}
        for (name, term), weight in zip(terms.items(), weights, strict=True):
            if weight is not None:
                kind = "_".join(name.split("_")[:2])  # loss_bbox_dn_3 is of loss_bbox
                losses[kind] = losses.get(kind, 0) + weight * term
        self._kept = losses
        return result

    def read_published(self, folder: Any) -> dict[str, Any]:
        """A checkpoint's content from a folder of the library; see :func:`.read_weights`."""
        return read_weights(folder, self.name, self.class_layers)


def best_class(logits: Tensor) -> Tensor:
    """Each query's best class alone, with the log odds of its softmax; -inf for the others.

    Args:
        logits: (B, N, K + 1), the last of "no object".

    Returns:
        (B, N, K) float32, whose sigmoid is the softmax.
    """
    logits = logits.float()
    best = logits[..., :-1].argmax(dim=-1, keepdim=True)
    others = logits.scatter(-1, best, -torch.inf).logsumexp(dim=-1, keepdim=True)
    none = torch.full_like(logits[..., :-1], -torch.inf)
    return none.scatter(-1, best, logits.gather(-1, best) - others)


def _build(cfg: Any, *, name: str) -> Detr:
    kind, section = ARCHITECTURES[name], cfg.MODEL.TRANSFORMERS
    ours = section.LOSS == "OneNet"
    _check(cfg, name, kind)
    backbone, shapes = None, []
    if not section.OWN_BACKBONE:
        backbone = build_backbone(cfg)
        shapes = head_shapes(cfg, backbone.shapes)
        if len(shapes) not in kind.maps:
            raise ConfigError(
                f"MODEL.OneNet.IN_FEATURES is {list(cfg.MODEL.OneNet.IN_FEATURES)}; expected "
                f"{' or '.join(map(str, kind.maps))} of the backbone's maps for "
                f"{cfg.MODEL.META_ARCHITECTURE}"
            )
    options = query_options(cfg, backbone) if ours else frame_options(cfg, backbone)
    if backbone is None:
        options["in_features"] = ()
    whole = section.SIZE or (backbone is None and kind.masked)
    channels, strides = ([getattr(s, key) for s in shapes] for key in ("channels", "stride"))
    network = build_network(cfg, name, channels, strides)
    if ours:
        set_prior(network, cfg.MODEL.OneNet.PRIOR_PROB)
    return Detr(
        **{"criterion": None, **options},
        head=network,
        name=name,
        side=section.SIZE,
        size_divisibility=1 if whole else DIVISIBILITY,
    )


def _check(cfg: Any, name: str, kind: Architecture) -> None:
    """Raise ``ConfigError`` if ``MODEL.TRANSFORMERS`` asks for what an architecture lacks."""
    section, full = cfg.MODEL.TRANSFORMERS, PREFIX + name
    if section.LOSS == "OneNet" and not kind.stages:
        able = ", ".join(PREFIX + other for other, of in ARCHITECTURES.items() if of.stages)
        raise ConfigError(
            f"{SECTION}.LOSS is 'OneNet'; expected 'library' for {full}: it is for {able}"
        )
    if not (section.OWN_BACKBONE or kind.maps):
        raise ConfigError(
            f"{SECTION}.OWN_BACKBONE is False; expected True, as {full} has no other backbone than "
            "its own"
        )
    if kind.square and not section.SIZE:
        raise ConfigError(f"{SECTION}.SIZE is 0; expected the side of a square, as {full} needs")
    weights = cfg.MODEL.WEIGHTS
    if section.OWN_BACKBONE and (torchvision_model(weights) or weights.startswith(TIMM)):
        raise ConfigError(
            f"MODEL.WEIGHTS is {weights!r}; expected '', hf://OWNER/NAME or a checkpoint, as "
            f"{SECTION}.OWN_BACKBONE is True: those are of another backbone"
        )


for _name in ARCHITECTURES:
    register(PREFIX + _name)(partial(_build, name=_name))
