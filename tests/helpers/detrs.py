"""Tiny networks of the library transformers, with images and objects for them."""

from __future__ import annotations

from contextlib import nullcontext
from functools import lru_cache
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from helpers.configs import BASELINES
from onenet.backbones.resnet import ResNet
from onenet.baselines.transformers_config import ARCHITECTURES
from onenet.lightning.build import build_detector
from onenet.lightning.config import load_cfg
from onenet.structures import Targets

BUILD = "onenet.baselines.transformers.build_backbone"
THIN = [
    "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.OneNet.NUM_CLASSES", "6",
    "MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64",
]  # fmt: skip
_COMMON = {"decoder_ffn_dim": 32, "decoder_layers": 2, "num_queries": 8}
_ENCODER = {
    **_COMMON, "encoder_layers": 1, "encoder_ffn_dim": 32, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
}  # fmt: skip
_PLAIN = {**_ENCODER, "d_model": 32}
_REAL_TIME = {
    **_PLAIN, "encoder_hidden_dim": 32, "decoder_in_channels": [32, 32, 32], "num_denoising": 4,
}  # fmt: skip
_PARTS = {
    **_COMMON, "d_model": 32, "decoder_self_attention_heads": 2,
    "decoder_cross_attention_heads": 2, "group_detr": 2,
}  # fmt: skip
_VIT = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 64}
TINY = {
    "Detr": _PLAIN,
    "ConditionalDetr": _PLAIN,
    "DabDetr": {**_ENCODER, "hidden_size": 32},
    "DeformableDetr": {**_PLAIN, "d_model": 64},  # its norms have 32 groups
    "RTDetr": _REAL_TIME,
    "RTDetrV2": _REAL_TIME,
    "DFine": _REAL_TIME,
    "Deimv2": _REAL_TIME,
    "LwDetr": {
        **_PARTS,
        "projector_scale_factors": [1.0],
        "backbone_config": {
            **_VIT, "model_type": "lw_detr_vit", "window_block_indices": [0, 1],
            "out_indices": [2, 4], "num_windows": 4,
        },
    },
    "RfDetr": {
        **_PARTS,
        "backbone_config": {
            **_VIT, "model_type": "rf_detr_dinov2", "patch_size": 16, "num_windows": 2,
            "num_register_tokens": 0, "out_features": ["stage2", "stage4"],
        },
    },
}  # fmt: skip


def config(name: str, *opts: str) -> Any:
    """A tiny network of an architecture, with a ResNet-18 of ours where it takes one."""
    kind = ARCHITECTURES[name]
    words = [*THIN, "MODEL.META_ARCHITECTURE", f"transformers.{name}"]
    for key, value in TINY[name].items():
        words += [f"MODEL.TRANSFORMERS.CONFIG.{key}", value]
    if not kind.maps:
        words += ["MODEL.TRANSFORMERS.OWN_BACKBONE", "True", "MODEL.TRANSFORMERS.SIZE", "64"]
    features = ["res5"] if kind.maps == (1,) else ["res3", "res4", "res5"]
    return load_cfg(
        BASELINES / "detr.res50.yaml", [*words, "MODEL.OneNet.IN_FEATURES", str(features), *opts]
    )


@lru_cache
def shared_backbone() -> ResNet:
    return ResNet(depth=18, norm="FrozenBN", freeze_at=2)


def build(name: str, *opts: str) -> nn.Module:
    """A detector; all of them share a backbone, which takes the longest to make."""
    torch.manual_seed(0)
    timm = "MODEL.TIMM.NAME" in opts
    with nullcontext() if timm else patch(BUILD, lambda _: shared_backbone()):
        return build_detector(config(name, *opts))


def image(height: int = 64, width: int = 96, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


def targets(*boxes: Any, labels: Any = None, size: tuple[int, int] = (64, 96)) -> Targets:
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    labels = [0] * len(boxes) if labels is None else labels
    return Targets(boxes, torch.tensor(labels, dtype=torch.int64), size)


PAIR = [image(), image(64, 64, 1)]
TRUTH = [
    targets([8, 8, 60, 40], [50, 10, 90, 60], labels=[0, 5]),
    targets(size=(64, 64)),
]
