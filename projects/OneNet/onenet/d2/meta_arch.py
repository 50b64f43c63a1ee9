"""The detector as a Detectron2 meta-architecture: its formats in and out, the core in between."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.config import configurable
from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage, has_event_storage
from detectron2.utils.visualizer import Visualizer
from torch import Tensor, nn

from onenet import detector as core
from onenet.config.build import model_options
from onenet.data.batching import DIVISIBILITY
from onenet.inference.postprocess import to_image
from onenet.structures import Detections, Targets
from onenet.training.history import diverged

_DRAWN = 20  # predicted boxes on a training picture


@META_ARCH_REGISTRY.register()
class OneNet(core.OneNet):
    """OneNet on Detectron2's backbones, fed with its dicts.

    Args:
        input_format: "RGB" or "BGR", the channels' order in the images.
        vis_period: iterations between pictures of training; 0: none.
        options: of :class:`onenet.detector.OneNet`.

    Attributes:
        stop_at_nonfinite: look at the losses and raise; False: hand them back as they are.
    """

    # From a config to the core's arguments; another model of the core has others.
    core_options = staticmethod(model_options)

    @configurable
    def __init__(self, *, input_format: str = "RGB", vis_period: int = 0, **options: Any) -> None:
        super().__init__(**options)
        self.input_format = input_format
        self.vis_period = vis_period
        self.stop_at_nonfinite = True

    @classmethod
    def from_config(cls, cfg: Any) -> dict[str, Any]:
        backbone = build_backbone(cfg)
        return {
            **cls.core_options(cfg, backbone, backbone.output_shape()),
            # A plain ResNet says 0: it asks for nothing.
            "size_divisibility": math.lcm(DIVISIBILITY, backbone.size_divisibility or 1),
            "input_format": cfg.INPUT.FORMAT,
            "vis_period": cfg.VIS_PERIOD,
        }

    @property
    def device(self) -> torch.device:
        """Where the model is; Detectron2's tools ask for it."""
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Losses in training, detections otherwise.

        Args:
            batched_inputs: dicts of a dataset mapper: ``image`` (3, H, W) uint8 or float;
                ``instances`` with ``gt_boxes`` and ``gt_classes`` in training; ``height`` and
                ``width`` that the detections shall be scaled to, the image's own by default.

        Returns:
            A dict of losses, or a dict a image with ``instances``: ``pred_boxes``, ``scores`` and
            ``pred_classes``, clipped to the image, best first.

        Raises:
            ValueError: training without ``instances``; names the image.
            NonFiniteError: a loss is NaN or infinite; names it, the iteration and the images. Not
                unless ``stop_at_nonfinite``.
        """
        images = [inputs["image"] for inputs in batched_inputs]
        if not self.training:
            found = super().forward(images)
            return [
                {"instances": _to_instances(detections, inputs)}
                for detections, inputs in zip(found, batched_inputs, strict=True)
            ]
        targets = [to_targets(inputs) for inputs in batched_inputs]
        if self.vis_period > 0 and get_event_storage().iter % self.vis_period == 0:
            self.visualize_training(batched_inputs)
        losses = super().forward(images, targets)
        if not self.stop_at_nonfinite:
            return losses
        # One look at the device for all: Detectron2's trainer takes another after this.
        values = torch.stack([loss.detach() for loss in losses.values()]).tolist()
        wrong = [f"{k} = {v}" for k, v in zip(losses, values, strict=True) if not math.isfinite(v)]
        if wrong:
            iteration = get_event_storage().iter + 1 if has_event_storage() else None
            raise diverged(iteration, ", ".join(wrong), list(map(name_of, batched_inputs)))
        return losses

    @torch.no_grad()
    def visualize_training(self, batched_inputs: list[dict[str, Any]]) -> None:
        """Put a picture of the first image into the event storage: truth left, best boxes right."""
        with _evaluating(self):
            found = super().forward([batched_inputs[0]["image"]])[0]
        image = convert_image_to_rgb(batched_inputs[0]["image"].permute(1, 2, 0), self.input_format)
        truth = Visualizer(image).overlay_instances(boxes=batched_inputs[0]["instances"].gt_boxes)
        size = tuple(batched_inputs[0]["image"].shape[-2:])
        best = to_image(found, size, size).boxes[:_DRAWN].cpu().numpy()
        predicted = Visualizer(image).overlay_instances(boxes=best)
        pictures = [torch.from_numpy(p.get_image().copy()) for p in (truth, predicted)]
        name = f"Left: GT bounding boxes; Right: {_DRAWN} Highest Scoring Results"
        get_event_storage().put_image(name, torch.cat(pictures, dim=1).permute(2, 0, 1))


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; then every module is as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def name_of(inputs: dict[str, Any]) -> str:
    """The file of a mapper's dict."""
    return str(inputs.get("file_name", "an image without file_name"))


def to_targets(inputs: dict[str, Any]) -> Targets:
    """The targets of a mapper's dict; ``ValueError`` if it has no ``instances``."""
    if "instances" not in inputs:
        raise ValueError(
            "training needs 'instances' in every input, as OneNetDatasetMapper gives them; "
            f"missing for {name_of(inputs)}"
        )
    instances = inputs["instances"]
    return Targets(instances.gt_boxes.tensor, instances.gt_classes, tuple(instances.image_size))


def _to_instances(detections: Detections, inputs: dict[str, Any]) -> Instances:
    image: Tensor = inputs["image"]
    size = tuple(image.shape[-2:])
    output_size = (inputs.get("height", size[0]), inputs.get("width", size[1]))
    detections = to_image(detections, size, output_size)
    return Instances(
        output_size,
        pred_boxes=Boxes(detections.boxes),
        scores=detections.scores,
        pred_classes=detections.labels,
    )
