"""Weights that the library transformers has saved, with the classes that OneNet counts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from onenet.checkpoints.files import read_checkpoint
from onenet.checkpoints.hub import WEIGHTS, load_transformers, read_published
from onenet.checkpoints.hub_config import network_class
from onenet.errors import CheckpointError

# Parts of the names of the parameters that have a row for each class.
_PARTS = ("class_embed", "class_labels_classifier", "enc_score_head")


def class_layers(network: nn.Module) -> tuple[str, ...]:
    """The detector's names of the parameters that depend on the number of classes."""
    return tuple(
        f"head.{name}" for name in network.state_dict() if any(part in name for part in _PARTS)
    )


@torch.no_grad()
def set_prior(network: nn.Module, probability: float) -> None:
    """Let every class score start near a probability, as OneNet's heads do (RetinaNet's prior)."""
    names = {name.removeprefix("head.") for name in class_layers(network)}
    for name, parameter in network.named_parameters():
        if name in names and name.endswith(".bias"):
            parameter.fill_(math.log(probability / (1 - probability)))


def read_weights(folder: Path, name: str, layers: tuple[str, ...]) -> dict[str, Any]:
    """A model in the library's format as the content of a checkpoint of the detector.

    COCO's ids go from 1 to 90, with gaps. Some models have a row for each of the 91 numbers; of
    those, the rows of the 80 classes are kept, in the same order, and the row of "no object".

    Args:
        folder: with the JSON files and the weights.
        name: the architecture.
        layers: see :func:`class_layers`.

    Returns:
        ``model``, and ``class_names``, empty if the folder names no classes.

    Raises:
        CheckpointError: another architecture, the weights are not those of the config, or a pickle
            of them could run code.
    """
    published = read_published(folder)
    if published.name != name:
        raise CheckpointError(f"{folder} is of {published.name}; expected {name}")
    safe, pickled = (folder / name for name in WEIGHTS)
    if not safe.is_file():
        read_checkpoint(pickled)  # refuses what could run code
    load_transformers().utils.logging.disable_progress_bar()
    try:
        network, report = network_class(name).from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=safe.is_file(),
            output_loading_info=True,
            dtype=torch.float32,
        )
    except Exception as error:  # the library's, torch's and safetensors', which have no base
        message = " ".join(str(error).split())
        raise CheckpointError(f"{folder}: transformers cannot load it: {message:.300}") from error
    lacking = sorted(report["missing_keys"])
    if lacking:
        raise CheckpointError(
            f"{folder} lacks {len(lacking)} of the model's arrays: {'; '.join(lacking[:3])}"
        )
    count = network.config.num_labels
    kept = torch.tensor(published.labels)
    state: dict[str, Tensor] = {f"head.{n}": value for n, value in network.state_dict().items()}
    for layer in layers:
        rows = state[layer]
        # "No object", or what pads the denoised classes, follows the labels.
        more = [count] if len(rows) == count + 1 else []
        state[layer] = rows[torch.cat((kept, kept.new_tensor(more)))]
    return {"model": state, "class_names": list(published.classes)}
