"""From a config to a network of the library transformers, which is an optional package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from onenet.checkpoints.hub_config import fields_of, network_class
from onenet.errors import ConfigError, did_you_mean

SECTION = "MODEL.TRANSFORMERS"
# What the library raises for values that do not fit each other; it has no error of its own.
_MISFITS = (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError)


@dataclass(frozen=True)
class Architecture:
    """What the networks of an architecture have in common.

    Attributes:
        maps: how many feature maps it reads: any of these numbers; none: it has to have a backbone
            of its own.
        masked: it reads where an image ends, and its boxes are in parts of the image; if not, they
            are in parts of the padded batch.
        softmax: the classes and "no object" share a softmax.
        stages: its decoder layers can be trained by OneNet's criterion.
        square: it takes square images only.
    """

    maps: tuple[int, ...] = ()
    masked: bool = True
    softmax: bool = False
    stages: bool = False
    square: bool = False


_REAL_TIME = Architecture(maps=(3,), masked=False)
# By name; the library's class has "ForObjectDetection" behind it.
ARCHITECTURES = {
    "Detr": Architecture(maps=(1,), softmax=True),
    "ConditionalDetr": Architecture(maps=(1,), stages=True),
    "DabDetr": Architecture(maps=(1,), stages=True),
    "DeformableDetr": Architecture(maps=(1, 2, 3, 4), stages=True),
    "RTDetr": _REAL_TIME,
    "RTDetrV2": _REAL_TIME,
    "DFine": _REAL_TIME,
    "Deimv2": _REAL_TIME,
    "LwDetr": Architecture(square=True),
    "RfDetr": Architecture(square=True),
}


def add_keys(cfg: Any) -> None:
    """Add ``MODEL.TRANSFORMERS`` to a config, in place."""
    node = type(cfg)
    c = cfg.MODEL.TRANSFORMERS = node()
    # "library": its assignment and losses; "OneNet": MODEL.OneNet's, on every decoder layer of
    # ConditionalDetr, DabDetr and DeformableDetr.
    c.LOSS = "library"
    # Fields of the library's config, such as num_queries and decoder_layers; the others keep the
    # library's values, except auxiliary_loss, which is True here. If MODEL.WEIGHTS is a model that
    # the library has saved, its own replace all of them.
    c.CONFIG = node(new_allowed=True)
    # The backbone of CONFIG.backbone_config, or else the architecture's, and not MODEL.BACKBONE.
    c.OWN_BACKBONE = False
    # Side in px of the square that images are resized to after INPUT; 0: they keep their shape.
    c.SIZE = 0


def build_network(
    cfg: Any, name: str, channels: Sequence[int], strides: Sequence[int]
) -> nn.Module:
    """The library's network, randomly initialised.

    Args:
        name: of :data:`ARCHITECTURES`.
        channels, strides: of the maps that it reads, finest first; empty: the network has a
            backbone of its own.

    Raises:
        ConfigError: transformers is missing or lacks the architecture, a key of
            ``MODEL.TRANSFORMERS.CONFIG`` is unknown, or its values do not fit.
    """
    kind = network_class(name)
    values = {"auxiliary_loss": True, **plain(cfg.MODEL.TRANSFORMERS.CONFIG)}
    _check_keys(kind.config_class, values)
    values["num_labels"] = cfg.MODEL.OneNet.NUM_CLASSES
    if channels:
        from .transformers_maps import MapsConfig

        values["backbone_config"] = MapsConfig(channels)
        if "encoder_in_channels" in fields_of(kind.config_class):
            values |= {"encoder_in_channels": list(channels), "feat_strides": list(strides)}
    from huggingface_hub.errors import StrictDataclassError

    try:
        config = kind.config_class(**values)
        _check_heads(config)
        network = kind(config)
    except ImportError as error:
        raise ConfigError(
            f"{SECTION}.CONFIG asks for a backbone of timm, which cannot be imported ({error}): "
            "pip install 'onenet[timm]'"
        ) from error
    except (StrictDataclassError, ValueError, *_MISFITS) as error:
        message = " ".join(str(error).split())
        raise ConfigError(
            f"{SECTION}.CONFIG does not fit {kind.__name__} of transformers: {message}"
        ) from error
    for key, parameter in network.named_parameters():
        if key.endswith("mask_token"):  # of the transformers that learn from masked images
            parameter.requires_grad_(False)
    return network


def plain(node: Any) -> Any:
    """Sections of a config as dicts."""
    return {k: plain(v) for k, v in node.items()} if isinstance(node, Mapping) else node


def _check_keys(kind: Any, values: Mapping[str, Any]) -> None:
    fields = fields_of(kind)
    for key in values:
        if key not in fields:
            hint = did_you_mean(key, fields) or f"; it has {', '.join(sorted(fields))}"
            raise ConfigError(f"{SECTION}.CONFIG.{key} is no field of {kind.__name__}{hint}")


def _check_heads(config: Any) -> None:
    """Raise ``ValueError`` unless the heads of each attention share the channels evenly."""
    channels = getattr(config, "hidden_size", None) or config.d_model
    encoder = getattr(config, "encoder_hidden_dim", channels)
    for key in sorted(fields_of(type(config))):
        if key.endswith("attention_heads"):
            width = encoder if key.startswith("encoder") else channels
            if getattr(config, key) < 1 or width % getattr(config, key):
                raise ValueError(f"{key} is {getattr(config, key)}; expected a divisor of {width}")
