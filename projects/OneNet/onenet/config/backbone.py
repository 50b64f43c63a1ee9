"""What the keys of the backbones may be together, and where their first weights come from."""

from __future__ import annotations

from typing import Any

from onenet.backbones.registry import BACKBONE_REGISTRY
from onenet.backbones.resnet import STAGES
from onenet.backbones.timm_names import ADDRESS, check_pixels
from onenet.checkpoints.weights import torchvision_model
from onenet.errors import ConfigError

from .published import take_published
from .values import require

NAME = "MODEL.BACKBONE.NAME"
# The section with the keys of each family of backbones.
_SECTIONS = {"resnet": "RESNETS", "mobilenetv3": "MOBILENETV3", "timm": "TIMM"}
PLAIN_BACKBONES = {f"build_{family}_backbone": family for family in _SECTIONS}
# The levels of each pyramid above those of the stages.
FPN_BACKBONES = {
    "build_retinanet_resnet_fpn_backbone": ["p6", "p7"],
    "build_resnet_fpn_backbone": ["p6"],
    "build_retinanet_mobilenetv3_fpn_backbone": ["p6", "p7"],
    "build_retinanet_timm_fpn_backbone": ["p6", "p7"],
    "build_timm_fpn_backbone": ["p6"],
}


def family(name: str) -> str:
    """The family of a backbone, by ``MODEL.BACKBONE.NAME``; "" for one of the user's own."""
    if name in PLAIN_BACKBONES:
        return PLAIN_BACKBONES[name]
    return next((f for f in _SECTIONS if name in FPN_BACKBONES and f"_{f}_" in name), "")


def norm_of(model: Any) -> tuple[str, str]:
    """The key of the backbone's norm and its value; ``MODEL.RESNETS.NORM`` for others than these.

    Args:
        model: the section ``MODEL``.
    """
    section = _SECTIONS[family(model.BACKBONE.NAME) or "resnet"]
    return f"MODEL.{section}.NORM", model[section].NORM


def choose_weights(cfg: Any) -> None:
    """Set ``MODEL.WEIGHTS`` to the weights that ``MODEL.TIMM.PRETRAINED`` asks for, if it is empty.

    A checkpoint in ``MODEL.WEIGHTS`` stays, so a config that trains from timm's weights also
    evaluates and exports.

    Raises:
        ConfigError: weights of a ResNet for another backbone, no such weights, timm or transformers
            is missing, or ``PIXEL_MEAN`` and ``PIXEL_STD`` are not theirs.
        CheckpointError: see :func:`~.published.take_published`.
    """
    take_published(cfg)
    model = cfg.MODEL
    kind = family(model.BACKBONE.NAME)
    if kind in ("timm", "mobilenetv3"):
        theirs = torchvision_model(model.WEIGHTS) or ""
        require(
            not theirs.startswith("resnet"),
            "MODEL.WEIGHTS",
            model.WEIGHTS,
            f"'' or weights of {NAME} {model.BACKBONE.NAME!r}: those are a ResNet's",
        )
    if kind != "timm":
        return
    require(bool(model.TIMM.NAME), "MODEL.TIMM.NAME", "", "the name of a model of timm")
    if model.TIMM.PRETRAINED and not model.WEIGHTS:
        model.WEIGHTS = ADDRESS + model.TIMM.NAME
    if model.WEIGHTS.startswith(ADDRESS):
        name = model.WEIGHTS.removeprefix(ADDRESS)
        check_pixels(name, model.PIXEL_MEAN, model.PIXEL_STD, bgr=cfg.INPUT.FORMAT == "BGR")


def check_backbone(model: Any) -> None:
    """Check the name of the embedded engine's backbone and what its keys say together.

    Raises:
        ConfigError: names the key, its value and what it may be.
    """
    names = [name for name, _ in BACKBONE_REGISTRY]
    if model.BACKBONE.NAME not in names:
        raise ConfigError(
            f"{NAME} is {model.BACKBONE.NAME!r}; expected one of {', '.join(map(repr, names))}"
        )
    depth = model.RESNETS.DEPTH
    width = 64 if depth in (18, 34) else 256
    require(
        model.RESNETS.RES2_OUT_CHANNELS == width,
        "MODEL.RESNETS.RES2_OUT_CHANNELS",
        model.RESNETS.RES2_OUT_CHANNELS,
        f"{width}, as MODEL.RESNETS.DEPTH is {depth}",
    )
    if model.BACKBONE.NAME in FPN_BACKBONES:
        wanted = list(model.FPN.IN_FEATURES)
        made, where = list(STAGES), ""
        if family(model.BACKBONE.NAME) == "resnet":
            made = list(model.RESNETS.OUT_FEATURES)
            where = f", all of them in MODEL.RESNETS.OUT_FEATURES {made}"
        require(
            bool(wanted) and wanted == list(STAGES[-len(wanted) :]) and set(wanted) <= set(made),
            "MODEL.FPN.IN_FEATURES",
            wanted,
            f"neighbouring stages up to 'res5'{where}",
        )


def check_features(model: Any) -> None:
    """Check that the embedded engine's backbone makes what the head reads.

    Raises:
        ConfigError: ``MODEL.OneNet.IN_FEATURES`` names something else.
    """
    name = model.BACKBONE.NAME
    if name in FPN_BACKBONES:
        made = [f"p{stage[3:]}" for stage in model.FPN.IN_FEATURES] + FPN_BACKBONES[name]
    elif family(name) == "resnet":
        made = sorted(model.RESNETS.OUT_FEATURES)
    elif family(name):
        made = list(STAGES)
    else:  # of the user's own; the head's builder compares them
        return
    wanted = list(model.OneNet.IN_FEATURES)
    require(
        bool(wanted) and wanted == [feature for feature in made if feature in wanted],
        "MODEL.OneNet.IN_FEATURES",
        wanted,
        f"some of {made}, which is what {name} makes with these settings, finest first",
    )
