"""Loading weights into models: finding the file, renaming parameters, checking that they fit.

Parameter names come from OneNet, Detectron2 or torchvision.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from onenet.backbones.timm_names import ADDRESS, published
from onenet.errors import CheckpointError

from .branch import BRANCH, deployed_state, leave_out_branch
from .classes import fit_class_layer
from .download import cache_folder, fetch
from .files import read_checkpoint
from .hub import ADDRESS as HUB
from .hub import find_published, weights_of
from .web import is_url

logger = logging.getLogger(__name__)

# Layers whose size depends on the number of classes, unless the model has ``class_layers``.
CLASS_LAYERS = ("head.cls_score.", f"{BRANCH}cls_score.")
# Value of a checkpoint's "weights" if "model" is a moving average; see onenet.training.ema.
AVERAGED = "ema"
# Names of an ImageNet classifier in torchvision and in Detectron2's two kinds of conversions.
_CLASSIFIERS = ("fc.", "stem.fc.", "linear.")
_TORCHVISION = re.compile(
    r"torchvision://(?P<model>resnet(18|34|50|101)|mobilenet_v3_(small|large))$"
)
_DETECTRON2 = re.compile(
    r"detectron2://ImageNetPretrained/torchvision/R-(?P<depth>18|34|50|101)\.pkl$"
)


def torchvision_model(weights: str) -> str | None:
    """The torchvision model, such as ``resnet50``, whose ImageNet weights an address names.

    ``None`` if ``weights`` is not such an address.
    """
    if match := _TORCHVISION.match(weights):
        return match["model"]
    match = _DETECTRON2.match(weights)
    return match and f"resnet{match['depth']}"


def is_address(weights: str) -> bool:
    """Whether :func:`locate_weights` knows where the weights of an address are."""
    known = weights.startswith((ADDRESS, HUB)) or torchvision_model(weights) is not None
    return known or is_url(weights)


def locate_weights(weights: str) -> Path:
    """Find the file of ``MODEL.WEIGHTS``, which is downloaded if necessary.

    Args:
        weights: a path, an ``http(s)`` address (see :func:`~.download.fetch`),
            ``torchvision://resnet50`` or ``mobilenet_v3_large``, Detectron2's name of a ResNet's
            weights, ``detectron2://ImageNetPretrained/torchvision/R-50.pkl`` (18, 34, 50 or 101),
            ``timm://NAME``, or what :func:`~.hub.find_published` takes.

    Raises:
        CheckpointError: no such file, an unknown address, or the download failed.
        ConfigError: timm or transformers is not installed, or timm publishes no such weights.
    """
    if (folder := find_published(weights)) is not None:
        return weights_of(weights, folder)
    if model := torchvision_model(weights):
        url, file = _published_by_torchvision(model)
        return _fetch(
            url,
            f"torchvision's ImageNet weights of {model}: ",
            f". You can also put the file into {cache_folder()} as {file}, or train from scratch "
            "with MODEL.WEIGHTS ''",
        )
    if weights.startswith(ADDRESS):
        name = weights.removeprefix(ADDRESS)
        advice = ". Or train from scratch with MODEL.WEIGHTS ''"
        return _fetch(published(name), f"timm's weights of {name}: ", advice)
    if is_url(weights):
        return _fetch(weights, "MODEL.WEIGHTS ")
    if "://" in weights:
        raise CheckpointError(
            f"MODEL.WEIGHTS {weights}: unknown address. Known are https://, http://, "
            "torchvision://resnet18, 34, 50, 101, torchvision://mobilenet_v3_small, large, "
            "timm://NAME, hf://OWNER/NAME and "
            "detectron2://ImageNetPretrained/torchvision/R-50.pkl; for anything else, download the "
            "file and give its path"
        )
    path = Path(os.path.expanduser(weights))
    if not os.path.isfile(path):  # Path.is_file raises if the name is too long
        raise CheckpointError(f"MODEL.WEIGHTS {weights}: there is no such file")
    return path


def _published_by_torchvision(model: str) -> tuple[str, str]:
    """The address of torchvision's ImageNet weights, and the name of the file."""
    from torchvision.models import get_model_weights

    url = get_model_weights(model).IMAGENET1K_V1.url
    return url, url.rpartition("/")[2]


def _fetch(url: str, what: str, advice: str = "") -> Path:
    try:
        return fetch(url)
    except CheckpointError as error:
        raise CheckpointError(f"{what}{error}{advice}") from error


def to_detectron2_name(name: str) -> str | None:
    """Detectron2's name for a parameter of torchvision's ResNet; ``None`` for the classifier."""
    if name.startswith("fc."):
        return None
    name = re.sub(r"^layer(\d)", lambda m: f"res{int(m[1]) + 1}", name)
    name = re.sub(r"^(conv1|bn1)\.", r"stem.\1.", name)
    name = re.sub(r"\bbn(\d)\.", r"conv\1.norm.", name)
    return name.replace("downsample.0.", "shortcut.").replace("downsample.1.", "shortcut.norm.")


def result_of(
    model: nn.Module,
    class_names: Sequence[str],
    config: Mapping[str, Any],
    *,
    averaged: bool = False,
) -> dict[str, Any]:
    """What a checkpoint for use, and not for ``--resume``, holds of a model.

    Args:
        config: its values by dotted key, which :func:`onenet.load` needs.
        averaged: the weights are a moving average.
    """
    content: dict[str, Any] = {
        "model": deployed_state(model.state_dict()),
        "class_names": list(class_names),
        "config": dict(config),
    }
    return {**content, "weights": AVERAGED} if averaged else content


def load_weights(
    model: nn.Module,
    weights: str,
    *,
    new_classes: bool = False,
    detector: bool = False,
    class_names: Sequence[str] = (),
) -> dict[str, Any]:
    """Load ``MODEL.WEIGHTS`` into a detector.

    A checkpoint of the whole detector must fit exactly. ImageNet weights (names without
    ``backbone.`` or ``head.``) fill the backbone; the rest keeps its initialisation. If the
    checkpoint also holds a moving average, as checkpoints to resume from do, loads the average.
    A checkpoint that names the model's classes in another order is mapped by name; see
    :func:`~onenet.checkpoints.classes.fit_class_layer`. A one-to-many branch is loaded if
    checkpoint and model have the same one, see :mod:`.branch`.

    Args:
        model: a detector with ``backbone`` and ``head``.
        weights: see :func:`locate_weights`.
        new_classes: if the checkpoint was trained on other classes, keep the initialisation of the
            class layer, or of the rows of new names, and log it (fine-tuning).
        detector: refuse a backbone alone, which detects nothing.
        class_names: the model's classes by label; empty if unknown.

    Returns:
        The rest of the checkpoint (``class_names``, by the model's labels; ``iteration``, …); its
        ``weights`` is "ema" if the loaded weights are a moving average.

    Raises:
        CheckpointError: the file cannot be read, or its weights do not fit the model.
    """
    path, content = _read(model, weights)
    state: dict[str, Tensor] = content.pop("model")
    if isinstance(content.get("ema"), Mapping) and "model" in content["ema"]:
        state, content["weights"] = content.pop("ema")["model"], AVERAGED
    # A classifier of timm also has a "head."; so has a detector without a backbone of ours.
    whole = getattr(model, "backbone", True) is None
    if whole or any(name.startswith("backbone.") for name in state):
        own, prefix = model.state_dict(), ""
    elif detector:
        raise CheckpointError(
            f"{path} holds a backbone only. Give the checkpoint of a trained detector, "
            "MODEL.WEIGHTS path/to/model.pth"
        )
    else:
        own, prefix = _backbone_state(model)
        backbone = getattr(model.backbone, "bottom_up", model.backbone)
        if hasattr(backbone, "from_classifier"):
            state = backbone.from_classifier(state)
        elif any(name.startswith("layer1.") for name in state):
            renamed = {to_detectron2_name(name): value for name, value in state.items()}
            state = {name: value for name, value in renamed.items() if name is not None}
        state = {name: v for name, v in state.items() if not name.startswith(_CLASSIFIERS)}
        state = {prefix + name: value for name, value in state.items()}
    # Frozen batch norms do not count batches, others do; nothing here reads the count.
    own = {name: v for name, v in own.items() if not name.endswith("num_batches_tracked")}
    state = {name: v for name, v in state.items() if not name.endswith("num_batches_tracked")}

    leave_out_branch(own, state)

    class_layers = getattr(model, "class_layers", CLASS_LAYERS)
    layer = {name for name in own if name.startswith(class_layers) and name in state}
    resized = {name for name in layer if state[name].shape != own[name].shape}
    fresh = resized if new_classes else set()
    if layer and not resized and class_names:
        trained = content.get("class_names", [])
        fresh, content["class_names"] = fit_class_layer(
            path,
            state,
            own,
            layer,
            trained,
            class_names,
            tuning=new_classes,
            by_class=getattr(model, "first_label", 0) == 0,  # 0 may be the background
        )
    for name in fresh:
        del state[name]
    check_fit(path, own, state, fresh, class_layers)
    model.load_state_dict(state, strict=False)
    if resized:
        logger.info(
            "%s was trained on another number of classes: the class layer keeps its initialisation",
            path,
        )
    kind = content.get("weights")  # in other projects' files this can be an array
    averaged = ", a moving average (EMA)," * (isinstance(kind, str) and kind == AVERAGED)
    what = " of the backbone" if prefix else averaged
    logger.info("Loaded %d arrays%s from %s", len(state), what, path)
    return content


def _read(model: nn.Module, weights: str) -> tuple[Path, dict[str, Any]]:
    """The file behind ``MODEL.WEIGHTS``, and what it holds with the model's names.

    A model with ``read_published`` reads what the library transformers has saved.
    """
    path = locate_weights(weights)
    if hasattr(model, "read_published") and (folder := find_published(weights)) is not None:
        return path, model.read_published(folder)
    return path, read_checkpoint(path)


def _backbone_state(model: nn.Module) -> tuple[dict[str, Tensor], str]:
    """The state of the model's ResNet, by full name, and the common prefix of the names."""
    state = model.state_dict()
    inner = any(name.startswith("backbone.bottom_up.") for name in state)
    prefix = "backbone.bottom_up." if inner else "backbone."
    return {name: value for name, value in state.items() if name.startswith(prefix)}, prefix


def check_fit(
    path: Path,
    own: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    fresh: set[str],
    class_layers: tuple[str, ...] = CLASS_LAYERS,
) -> None:
    """Refuse a checkpoint whose names or shapes are not a model's.

    Args:
        path: of the checkpoint, for the message.
        own: the model's arrays by name; only their shapes count.
        state: the checkpoint's.
        fresh: names that the checkpoint may lack.
        class_layers: starts of the names whose shapes depend on the number of classes.

    Raises:
        CheckpointError: counts what differs, and names the first of each kind.
    """
    missing = [name for name in own if name not in state and name not in fresh]
    unexpected = [name for name in state if name not in own]
    shapes = [
        f"{name} {tuple(state[name].shape)}, the model has {tuple(value.shape)}"
        for name, value in own.items()
        if name in state and state[name].shape != value.shape
    ]
    if not (missing or unexpected or shapes):
        return
    hint = "Does the config belong to the checkpoint (head, NUM_HEADS, DCN, depth)?"
    if not (missing or unexpected) and all(line.startswith(class_layers) for line in shapes):
        hint = "It was trained on another number of classes: set MODEL.OneNet.NUM_CLASSES to match"
    problems = {"missing": missing, "not in the model": unexpected, "of another shape": shapes}
    lines = [
        f"  {len(names)} {what}: {'; '.join(names[:3])}{' …' * (len(names) > 3)}"
        for what, names in problems.items()
        if names
    ]
    raise CheckpointError("\n".join([f"{path} does not fit the model. {hint}", *lines]))
