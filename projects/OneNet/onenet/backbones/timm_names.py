"""The names of timm's models and of their weights; timm itself is an optional package.

An address ``timm://NAME`` names the weights that timm publishes for a model.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from typing import Any

from onenet.errors import ConfigError, did_you_mean

KEY = "MODEL.TIMM.NAME"
ADDRESS = "timm://"
FILE = "model.safetensors"  # of a model on the hub


def load_timm() -> Any:
    """The package timm; ``ConfigError`` that names the extra if it is not installed."""
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise ConfigError(
            f"{KEY} needs timm, which cannot be imported ({error}): pip install 'onenet[timm]'"
        ) from error


def check_name(name: str) -> None:
    """Raise ``ConfigError`` unless timm has a model of that name, ``MODEL`` or ``MODEL.TAG``."""
    timm = load_timm()
    # is_model() ignores tags, and create_model() would ask the network about hf-hub:NAME.
    model, _, tag = name.partition(".")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{model}.*")]
    if model in timm.list_models() and (not tag or tag in tags):
        return
    if tag and tags:
        hint = f"; its weights are {', '.join(f'{model}.{known}' for known in tags)}"
    else:
        hint = did_you_mean(model, timm.list_models())
        hint = hint or "; timm.list_models() lists the known ones"
    raise ConfigError(f"{KEY} is {name!r}, which timm {timm.__version__} does not have{hint}")


def published(name: str) -> str:
    """The address of timm's weights of a model.

    Args:
        name: as ``MODEL.TIMM.NAME`` gives it; without a tag it means timm's own choice.

    Raises:
        ConfigError: no such model, or timm publishes no weights for it that fit.
    """
    check_name(name)
    found = load_timm().get_pretrained_cfg(name)
    if found is None or found.custom_load or not (found.hf_hub_id or found.url):
        raise ConfigError(
            f"timm publishes no weights for {name} that can be loaded here; expected "
            "MODEL.TIMM.PRETRAINED False, or a name of timm.list_pretrained()"
        )
    if found.hf_hub_id:
        host = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
        return f"{host}/{found.hf_hub_id}/resolve/main/{found.hf_hub_filename or FILE}"
    return found.url


def check_pixels(name: str, mean: Sequence[float], std: Sequence[float], bgr: bool) -> None:
    """Raise ``ConfigError`` unless images are normalised as in the training of timm's weights.

    Args:
        mean, std: ``MODEL.PIXEL_MEAN`` and ``PIXEL_STD``, 0…255, in the images' channel order.
        bgr: that order is BGR.
    """
    found = load_timm().get_pretrained_cfg(name)
    for key, values, theirs in (("MEAN", mean, found.mean), ("STD", std, found.std)):
        wanted = [255 * value for value in (theirs[::-1] if bgr else theirs)]
        if any(abs(a - b) > 0.5 for a, b in zip(values, wanted, strict=True)):
            shown = ", ".join(f"{value:.3f}" for value in wanted)
            raise ConfigError(
                f"MODEL.PIXEL_{key} is {list(values)}, but timm's weights of {name} were trained "
                f"with MODEL.PIXEL_{key} '[{shown}]': set that, or give the weights' file as "
                "MODEL.WEIGHTS to keep yours"
            )
