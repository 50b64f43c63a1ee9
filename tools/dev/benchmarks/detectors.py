"""A config's OneNet in every setting of inference."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _shared.timing import Stopwatch, stages_of
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

import onenet
from benchmarks.networks import settle_norms
from benchmarks.options import ONNX, PROVIDERS, Options
from onenet.deploy.export import Deployed, to_onnx
from onenet.deploy.quantize import to_float16, to_int8
from onenet.deploy.runtime import IMAGES, OUTPUTS, SIZES, ModelInfo, open_session, pad_images
from onenet.detector import OneNet
from onenet.inference.optimize import prepare
from onenet.inference.postprocess import per_image
from onenet.lightning.build import build_detector
from onenet.lightning.config import load_cfg
from onenet.ops.deform import DeformConv
from onenet.structures import Detections

# Detects in uint8 images (3, H, W) of one size.
Detect = Callable[[Sequence[Tensor], Stopwatch], list[Detections]]
PLAIN = "torchvision's DCN"
# Arguments of onenet.inference.optimize.prepare(); None: the model as it was trained.
PREPARED: dict[str, dict[str, Any] | None] = {
    "eager": None,
    "fused": {},
    "bf16": {"precision": "bfloat16"},
    "compiled": {"compile": True},
    "compiled-bf16": {"precision": "bfloat16", "compile": True},
}


def build_onenet(config: Path, options: Options) -> tuple[Any, OneNet]:
    """A config and its random model, whose batch norms fit its activations."""
    cfg = load_cfg(config, ["MODEL.DEVICE", str(options.device), "MODEL.WEIGHTS", ""])
    torch.manual_seed(0)
    model = build_detector(cfg).to(options.device)
    settle_norms(model, partial(_look_at_noise, model, options.size))
    return cfg, model.eval()


def _look_at_noise(model: OneNet, size: Sequence[int]) -> None:
    model.predict(make_images(1, size, model.pixel_mean.device))


def make_images(count: int, size: Sequence[int], device: torch.device) -> list[Tensor]:
    """Images of noise, (3, H, W) uint8 each."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, *size), generator=generator, dtype=torch.uint8)
    return list(images.to(device))


def onenet_settings(config: Path, options: Options) -> dict[str, Detect]:
    """Functions that detect with a config's model, by setting, for ``options.settings``.

    For a deformable model on the CPU, the first setting is ``PLAIN``: eager with torchvision's
    operator instead of OneNet's.
    """
    cfg, model = build_onenet(config, options)
    settings: dict[str, Detect] = {}
    layers = [name for name, module in model.named_modules() if isinstance(module, DeformConv)]
    if layers and options.device.type == "cpu" and "eager" in options.settings:
        plain = copy.deepcopy(model)
        for name in layers:
            layer = plain.get_submodule(name)
            layer.forward = partial(_torchvision_dcn, layer)
        settings[PLAIN] = partial(detect_in_stages, plain)
    for name in options.settings:
        if name in ONNX:
            settings[name] = onnx_runtime(cfg, model, config, options, name)
            continue
        twin, arguments = copy.deepcopy(model), PREPARED[name]
        if arguments is not None:
            prepare(twin, **arguments)
        compiled = bool(arguments) and "compile" in arguments
        settings[name] = partial(detect_at_once if compiled else detect_in_stages, twin)
    return settings


@torch.inference_mode()
def detect_in_stages(model: OneNet, images: Sequence[Tensor], watch: Stopwatch) -> list[Detections]:
    """Call the model, with the stages preprocess, backbone, head and post-process."""
    ends = {"backbone": model.backbone, "head": model.head}
    with stages_of(watch, before={"preprocess": model.backbone}, after=ends):
        found = model(images)
    watch("post-process")
    return found


@torch.inference_mode()
def detect_at_once(model: OneNet, images: Sequence[Tensor], watch: Stopwatch) -> list[Detections]:
    """Call a compiled model, in which everything from the backbone to the top-k is one graph."""
    batch = model.batch(images)
    watch("preprocess")
    found = per_image(*model.find(batch), model.nms_iou)
    watch("graph")
    return found


def onnx_runtime(
    cfg: Any, model: OneNet, config: Path, options: Options, setting: str = "onnx"
) -> Detect:
    """ONNX Runtime on the options' device; normalisation is part of its graph.

    Args:
        setting: one of ``ONNX``; integers are calibrated on the noise that is timed.
    """
    bgr = cfg.INPUT.FORMAT == "BGR"
    info = ModelInfo(
        class_names=[str(label) for label in range(cfg.MODEL.OneNet.NUM_CLASSES)],
        max_detections=model.max_detections,
        min_size=0,
        max_size=0,
        stride=model.size_divisibility,
        input_format="RGB",
        input_layout="NCHW",
        ema=False,
        config=config.name,
        onenet_version=onenet.__version__,
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        proto = to_onnx(Deployed(model, bgr=bgr), info)
        if setting == "onnx-int8":
            noise = make_images(1, options.size, torch.device("cpu"))[0].permute(1, 2, 0).numpy()
            proto = to_int8(proto, [pad_images([noise], model.size_divisibility)])
        elif setting == "onnx-float16":
            proto = to_float16(proto)
        path.write_bytes(proto.SerializeToString())
        providers = [PROVIDERS[options.device.type]]
        session = open_session(path, providers, torch.get_num_threads())

    def detect(images: Sequence[Tensor], watch: Stopwatch) -> list[Detections]:
        channels_last = [image.permute(1, 2, 0).cpu().numpy() for image in images]
        batch, sizes = pad_images(channels_last, model.size_divisibility)
        # The graph takes RGB; these images have the model's channel order.
        batch = batch[:, ::-1] if bgr else batch
        watch("preprocess")
        outputs = session.run(OUTPUTS, {IMAGES: batch, SIZES: sizes})
        watch("graph")
        return [Detections(*map(torch.from_numpy, of)) for of in zip(*outputs, strict=True)]

    return detect


def _torchvision_dcn(layer: nn.Module, x: Tensor, offset: Tensor, mask: Tensor | None) -> Tensor:
    return deform_conv2d(x, offset, layer.weight, padding=1, mask=mask)
