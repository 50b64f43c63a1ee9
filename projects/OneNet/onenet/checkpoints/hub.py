"""Models that the library transformers has saved: folders, here or on the Hugging Face hub.

An address ``hf://OWNER/NAME`` names one on the hub, which ``huggingface_hub`` downloads and keeps.
Its ``config.json`` says what was built, and ``preprocessor_config.json`` which images it takes.
"""

from __future__ import annotations

import importlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onenet.errors import CheckpointError, ConfigError

ADDRESS = "hf://"
# What MODEL.META_ARCHITECTURE begins with for the library's detectors.
PREFIX = "transformers."
CONFIG, IMAGES = "config.json", "preprocessor_config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
CLASS = "ForObjectDetection"
_NAME = re.compile(r"[\w.-]+/[\w.-]+")
# Labels that stand for no class, as at the gaps of COCO's ids; the library makes up "LABEL_7".
_NO_LABEL = re.compile(r"N/A|none|background|no[ -]object|LABEL_\d+|\s*", re.IGNORECASE)


def load_transformers() -> Any:
    """The package transformers; ``ConfigError`` that names the extra if it is not installed."""
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise ConfigError(
            "MODEL.META_ARCHITECTURE transformers.… needs transformers, which cannot be imported "
            f"({error}): pip install 'onenet[transformers]'"
        ) from error


def find_published(weights: str) -> Path | None:
    """The folder of a model in the library's format, with its two JSON files.

    Args:
        weights: as ``MODEL.WEIGHTS`` gives it: ``hf://OWNER/NAME``, with ``@REVISION`` if it is not
            the newest; a folder with a ``config.json``; or a file of weights in one.

    Returns:
        ``None`` for anything else.

    Raises:
        CheckpointError: a name that the hub cannot have, or its files cannot be had.
        ConfigError: transformers is not installed, and the model is on the hub.
    """
    if weights.startswith(ADDRESS):
        _fetch(weights, IMAGES, needed=False)
        return _fetch(weights, CONFIG).parent
    if "://" in weights or not weights:
        return None
    path = Path(os.path.expanduser(weights))
    folder = path.parent if path.name in WEIGHTS else path
    try:
        content = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError):
        return None
    # timm's have no model_type.
    return folder if isinstance(content, dict) and "model_type" in content else None


def weights_of(weights: str, folder: Path) -> Path:
    """The file of the weights in a folder of :func:`find_published`, downloaded if necessary.

    Raises:
        CheckpointError: there is none.
    """
    path = Path(os.path.expanduser(weights))
    if path.name in WEIGHTS and path.is_file():
        return path
    for name in WEIGHTS:
        if weights.startswith(ADDRESS):
            found = _fetch(weights, name, needed=name == WEIGHTS[-1])
        else:
            found = folder / name if (folder / name).is_file() else None
        if found is not None:
            return found
    raise CheckpointError(f"MODEL.WEIGHTS {weights} holds none of {', '.join(WEIGHTS)}")


@dataclass(frozen=True)
class Published:
    """What the JSON files of a model say.

    Attributes:
        name: the architecture, such as "DeformableDetr".
        classes: the names of the classes, by our label; empty if they have none.
        labels: the library's label of each class; it may have others for no class.
        mean, std: of the pixels, RGB, 0…255.
        side: px, of the square that every image is resized to; 0: images keep their shape.
    """

    name: str
    classes: tuple[str, ...]
    labels: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    side: int


def read_published(folder: Path) -> Published:
    """Read the JSON files of a folder of :func:`find_published`.

    Raises:
        CheckpointError: it is no detector, or a file does not hold what it should.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_bytes())
        names = [str(name) for name in config.get("architectures") or ()]
        names = [name.removesuffix(CLASS) for name in names if name.endswith(CLASS)]
        if not names:
            raise CheckpointError(
                f"{path} is of {', '.join(config.get('architectures') or ['no model'])}; expected "
                f"a detector, whose 'architectures' end with {CLASS}"
            )
        given = {int(label): str(name) for label, name in config.get("id2label", {}).items()}
        count = max(given, default=-1) + 1 or int(config.get("num_labels", 2))
        path = folder / IMAGES
        images = json.loads(path.read_bytes()) if path.is_file() else {}
        mean, std = _pixels(images)
        size = images.get("size")
        sides = {size.get("height"), size.get("width")} if isinstance(size, dict) else {None}
    except CheckpointError:
        raise
    except (AttributeError, OSError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} does not describe a detector: {error}") from error
    if len(sides) > 1:
        raise CheckpointError(
            f"{path}: 'size' is {size}; expected a square, or 'shortest_edge' and 'longest_edge'"
        )
    (side,) = sides
    labels = [label for label in sorted(given) if not _NO_LABEL.fullmatch(given[label])]
    return Published(
        name=names[0],
        classes=tuple(given[label] for label in labels),
        labels=tuple(labels) or tuple(range(count)),
        mean=mean,
        std=std,
        side=int(side or 0),
    )


def _pixels(images: dict[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and the standard deviation of pixels from 0 to 255."""
    scale = 1.0
    if images.get("do_rescale", True):
        scale = 1 / float(images.get("rescale_factor", 1 / 255))
    mean, std = [0.0] * 3, [1.0] * 3
    if images.get("do_normalize", True):
        # ImageNet's, as in the library's classes, where a file names none.
        mean = images.get("image_mean", [0.485, 0.456, 0.406])
        std = images.get("image_std", [0.229, 0.224, 0.225])
    return tuple(scale * value for value in mean), tuple(scale * value for value in std)


def _fetch(weights: str, file: str, *, needed: bool = True) -> Path | None:
    """A file of a model on the hub, from the hub's cache or downloaded into it.

    Args:
        needed: raise if the model has no such file; otherwise ``None``.
    """
    name, _, revision = weights.removeprefix(ADDRESS).partition("@")
    if not _NAME.fullmatch(name):
        raise CheckpointError(
            f"MODEL.WEIGHTS {weights}: expected {ADDRESS}OWNER/NAME, such as "
            f"{ADDRESS}facebook/detr-resnet-50; give a folder here by its path alone"
        )
    load_transformers()  # needs huggingface_hub
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(name, file, revision=revision or None))
    except Exception as error:  # the hub's, those of its HTTP library, and the system's
        offline = isinstance(error, LocalEntryNotFoundError)
        if isinstance(error, EntryNotFoundError) and not offline and not needed:
            return None
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(
            f"MODEL.WEIGHTS {weights}: {file} could not be fetched ({reason:.300}). Without a "
            f"network, download the model elsewhere (hf download {name} --local-dir FOLDER) and "
            f"give the folder that holds {CONFIG}: MODEL.WEIGHTS path/to/FOLDER"
        ) from error
