"""Costs of trained detectors: time, post-processing, parameters and multiply-adds."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from _shared.timing import Stopwatch, Timings, alternate, stages_of
from onenet.checkpoints.weights import load_weights
from onenet.config.build import prepare_inference
from onenet.config.device import choose_device
from onenet.data.dataset import CocoDetection, spread_evenly
from onenet.data.sources import find_dataset
from onenet.lightning.build import build_detector
from onenet.lightning.config import load_cfg
from onenet.lightning.datasets import TestDataset, build_test_transform

POST = "post-processing"


@dataclass(frozen=True)
class Candidate:
    """A trained detector, ready for inference, and images to test on.

    Attributes:
        model: on its device, prepared as ``TEST.FUSE``, ``PRECISION`` and ``COMPILE`` say.
        pixels: resized images, uint8 (3, H, W), on the device.
        parameters: number of parameters before the model was prepared.
    """

    model: nn.Module
    pixels: list[Tensor]
    parameters: int

    @property
    def last_layer(self) -> nn.Module:
        """The last layer before post-processing; in two-stage detectors, after the proposals."""
        two_stage = hasattr(self.model, "roi_heads")
        return self.model.roi_heads.box_predictor if two_stage else self.model.head


def load(config: Path, weights: Path, opts: Sequence[str], count: int) -> Candidate:
    """Load a config's detector with its weights, and ``count`` images spread over its test set."""
    cfg = load_cfg(config, opts)
    model = build_detector(cfg)
    load_weights(model, str(weights), detector=True)
    dataset = CocoDetection(find_dataset(cfg.DATASETS.TEST[0]))
    images = TestDataset(dataset, build_test_transform(cfg), image_format=cfg.INPUT.FORMAT)
    device = choose_device(cfg)
    return Candidate(
        parameters=sum(p.numel() for p in model.parameters()),
        model=prepare_inference(cfg, model.to(device)),
        pixels=[images[i].image.to(device) for i in spread_evenly(count, len(images))],
    )


@torch.inference_mode()
def time_all(
    candidates: dict[str, Candidate], repeats: int, device: torch.device
) -> dict[str, Timings]:
    """Time detectors in turn on one image at a time, a different one in each round.

    Returns:
        Seconds by detector and stage: ``"network"``, ``POST`` and ``"total"``.
    """

    def runner(candidate: Candidate) -> Any:
        images = cycle(candidate.pixels)

        def run(watch: Stopwatch) -> None:
            with stages_of(watch, after={"network": candidate.last_layer}):
                candidate.model([next(images)])
                watch(POST)

        return run

    runners = {name: runner(candidate) for name, candidate in candidates.items()}
    return alternate(runners, repeats=repeats, warmup=3, device=device)


class _Flat(nn.Module):
    """A detector that takes one image and returns tensors, as tracing requires."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        found = self.model([image])[0]
        return found.boxes, found.scores


@torch.inference_mode()
def gflops(candidate: Candidate) -> float:
    """10⁹ multiply-adds on the first image, as fvcore counts them."""
    with warnings.catch_warnings():
        # fvcore counts by torch's tracing, which warns, as does its import.
        warnings.simplefilter("ignore")
        from fvcore.nn import FlopCountAnalysis
        from fvcore.nn.jit_handles import get_shape

        def deform_conv(inputs: list[Any], outputs: list[Any]) -> int:
            out, weight = torch.Size(get_shape(outputs[0])), torch.Size(get_shape(inputs[1]))
            return out.numel() * weight[1:].numel()

        flops = FlopCountAnalysis(_Flat(candidate.model), (candidate.pixels[0],))
        flops.set_op_handle("torchvision::deform_conv2d", deform_conv)
        flops.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        return flops.total() / 1e9
