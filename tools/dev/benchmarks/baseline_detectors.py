"""The benchmark's baselines: detectors of torchvision and Detectron2 with random weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from _shared.timing import Stopwatch, stages_of
from torch import Tensor, nn
from torchvision.models import detection as tv

from benchmarks.networks import fold_torchvision, settle_norms, weights_to_bfloat16
from benchmarks.options import Options

CLASSES, DETECTIONS = 80, 100
# Logits far from every score threshold: certainly no object, certainly background.
_LOW, _BACKGROUND = -20.0, 20.0


@dataclass(frozen=True)
class Detector:
    """A detector whose stages can be timed.

    With random weights and noise, NMS has other work than after training. So, once the head has
    computed its output, a made-up one with a chosen number of candidates replaces it: the network
    takes its real time, and post-processing the time for these candidates.

    Attributes:
        model: the whole detector.
        prepare: turns uint8 images (3, H, W) into the model's argument.
        backbone: module of the model; the stage "preprocess" ends before it, "backbone" after it.
        head: module of the model; the stage "head" ends after it, and post-processing follows.
        exchange: turns the head's output into one with this many candidates per image.
        amp: whether the detector runs under autocast to bfloat16.
        graphs: backbone and head are two CUDA graphs; the second reads what the first wrote.
    """

    model: nn.Module
    prepare: Callable[[Sequence[Tensor]], Any]
    backbone: nn.Module
    head: nn.Module
    exchange: Callable[[Any, int], Any]
    amp: bool = False
    graphs: bool = False

    @torch.inference_mode()
    def run(self, images: Sequence[Tensor], made_up: Any, watch: Stopwatch) -> Any:
        """Detect objects; ``made_up``, from :meth:`make_up`, replaces the head's output."""
        if self.graphs:
            torch.compiler.cudagraph_mark_step_begin()
        with ExitStack() as stack:
            ends = {"backbone": self.backbone, "head": self.head}
            stack.enter_context(stages_of(watch, before={"preprocess": self.backbone}, after=ends))
            hook = self.head.register_forward_hook(lambda *given: _fit(made_up, given[-1]))
            stack.callback(hook.remove)
            device = images[0].device.type
            stack.enter_context(torch.autocast(device, torch.bfloat16, enabled=self.amp))
            found = self.model(self.prepare(images))
        watch("post-process")
        return found

    @torch.inference_mode()
    def make_up(self, images: Sequence[Tensor], candidates: int) -> Any:
        """An output of the head for these images, with this many candidates in each."""
        outputs = []
        hook = self.head.register_forward_hook(lambda _, __, output: outputs.append(output))
        self.model(self.prepare(images))
        hook.remove()
        return self.exchange(outputs[0], candidates)

    def fused(self) -> Detector:
        """A copy for inference: batch norms folded into convolutions, ``channels_last``."""
        twin = self._copy()
        fold_torchvision(twin.model)
        twin.model.to(memory_format=torch.channels_last)
        return twin

    def in_bfloat16(self) -> Detector:
        """A copy that runs under autocast to bfloat16, with weights converted once."""
        twin = replace(self._copy(), amp=True)
        weights_to_bfloat16(twin.model)
        return twin

    def compiled(self) -> Detector:
        """A copy with backbone and head compiled for one input size; on CUDA, as CUDA graphs."""
        twin = self._copy()
        on_cuda = next(twin.model.parameters()).is_cuda
        mode = "reduce-overhead" if on_cuda else None
        for module in (twin.backbone, twin.head):
            module.forward = torch.compile(module.forward, dynamic=False, mode=mode)
        return replace(twin, graphs=on_cuda)

    def _copy(self) -> Detector:
        # One memo, so that the copies of backbone and head are parts of the copied model.
        memo: dict[int, Any] = {}
        parts = {n: copy.deepcopy(getattr(self, n), memo) for n in ("model", "backbone", "head")}
        return replace(self, **parts)


def torchvision_detectors(options: Options) -> dict[str, Detector]:
    """RetinaNet, FCOS and Faster R-CNN on ResNet-50-FPN, and SSD300 on VGG-16.

    They keep the size of the images, except SSD300, which resizes them to 300×300 px.
    """
    random = {"weights": None, "weights_backbone": None}
    most = {"detections_per_img": DETECTIONS}
    retinanet = tv.retinanet_resnet50_fpn(num_classes=CLASSES, **most, **random)
    fcos = tv.fcos_resnet50_fpn(num_classes=CLASSES, **most, **random)
    ssd = tv.ssd300_vgg16(num_classes=CLASSES + 1, **most, **random)
    faster = tv.fasterrcnn_resnet50_fpn(
        num_classes=CLASSES + 1, box_detections_per_img=DETECTIONS, **random
    )
    for model in (retinanet, fcos, faster):
        model.transform.resize = _keep_size
        noise = torch.randn(1, 3, *options.size)
        settle_norms(model.backbone, partial(model.backbone, noise))
    detectors = {
        "RetinaNet R50-FPN": (retinanet, retinanet.head, _dict_of(0.0)),
        "FCOS R50-FPN": (fcos, fcos.head, _dict_of(2.0)),
        "Faster R-CNN R50-FPN": (faster, faster.roi_heads.box_predictor, _faster_rcnn),
        "SSD300 VGG-16": (ssd, ssd.head, _dict_of(0.0, background=True)),
    }
    return {
        f"torchvision {name}": Detector(
            model.to(options.device).eval(), _to_torchvision, model.backbone, head, exchange
        )
        for name, (model, head, exchange) in detectors.items()
    }


def detectron2_detectors(options: Options) -> dict[str, Detector]:
    """RetinaNet and FCOS on ResNet-50-FPN; none if Detectron2 is not installed."""
    try:
        from detectron2.config import instantiate
        from detectron2.model_zoo import get_config
    except ImportError:
        return {}
    detectors = {}
    for name, boxes in (("RetinaNet", 0.0), ("FCOS", 2.0)):
        config = get_config(f"COCO-Detection/{name.lower()}_R_50_FPN_1x.py")
        model = instantiate(config.model).to(options.device).eval()
        detectors[f"Detectron2 {name} R50-FPN"] = Detector(
            model, _to_detectron2, model.backbone, model.head, _levels_of(boxes)
        )
    return detectors


def _fit(made_up: Any, output: Any) -> Any:
    """Cut ``made_up`` to the head's number of rows: Faster R-CNN's proposals depend on rounding."""
    if isinstance(output, tuple):
        return tuple(made[: len(real)] for made, real in zip(made_up, output, strict=True))
    return made_up


def _keep_size(image: Tensor, target: Any) -> tuple[Tensor, Any]:
    return image, target


def _to_torchvision(images: Sequence[Tensor]) -> list[Tensor]:
    return [image.float() / 255 for image in images]


def _to_detectron2(images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
    return [{"image": image} for image in images]


def with_candidates(logits: Sequence[Tensor], count: int) -> list[Tensor]:
    """Logits below every threshold, except for ``count`` random entries of each image.

    Args:
        logits: for each level (B, …); gives shapes and devices.
        count: number of candidates per image.
    """
    generator = torch.Generator().manual_seed(0)
    sizes = [level[0].numel() for level in logits]
    rows = []
    for _ in range(len(logits[0])):
        row = torch.full((sum(sizes),), _LOW)
        chosen = torch.randperm(len(row), generator=generator)[:count]
        row[chosen] = torch.rand(len(chosen), generator=generator) * 4 - 2
        rows.append(row)
    made = torch.stack(rows).split(sizes, dim=1)
    return [m.reshape(like.shape).to(like.device) for m, like in zip(made, logits, strict=True)]


def with_background(logits: Tensor, count: int) -> Tensor:
    """The same for logits (B, N, 1 + K) of a softmax whose first class is the background."""
    classes = with_candidates([logits[..., 1:]], count)[0]
    chosen = classes > _LOW
    # Certainly background, except at the chosen entries.
    classes = torch.where(chosen, classes + _BACKGROUND, classes)
    background = torch.where(chosen.any(dim=-1, keepdim=True), _LOW, _BACKGROUND)
    return torch.cat((background, classes), dim=-1)


def _dict_of(boxes: float, background: bool = False) -> Callable[[dict[str, Tensor], int], Any]:
    """Replaces the output of torchvision's dense heads; all box regressions become ``boxes``."""

    def exchange(output: dict[str, Tensor], count: int) -> dict[str, Tensor]:
        logits = output["cls_logits"].float()
        made = {name: torch.full_like(value.float(), boxes) for name, value in output.items()}
        made["cls_logits"] = (
            with_background(logits, count) if background else with_candidates([logits], count)[0]
        )
        if "bbox_ctrness" in output:
            made["bbox_ctrness"].fill_(-_LOW)
        return made

    return exchange


def _faster_rcnn(output: tuple[Tensor, Tensor], count: int) -> tuple[Tensor, Tensor]:
    logits, deltas = output
    # Treats all proposals as one image's, and adds as many that are certainly background.
    made = torch.cat((with_background(logits[None], count), with_background(logits[None], 0)), 1)
    return made[0], deltas.new_zeros(2 * len(deltas), deltas.shape[1], dtype=torch.float32)


def _levels_of(boxes: float) -> Callable[[Sequence[Any], int], Any]:
    """Replaces the output of Detectron2's heads, lists over levels, in the same way."""

    def exchange(output: Sequence[list[Tensor]], count: int) -> list[list[Tensor]]:
        logits, deltas, *centerness = output
        return [
            with_candidates(logits, count),
            [torch.full_like(level, boxes) for level in deltas],
            *[[torch.full_like(level, -_LOW) for level in levels] for levels in centerness],
        ]

    return exchange
