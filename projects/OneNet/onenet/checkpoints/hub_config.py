"""The library transformers' classes of networks, and what their configs say of a network."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from onenet.errors import CheckpointError, ConfigError

from .hub import CLASS, PREFIX, load_transformers

# Not of the network: whether training reads every decoder layer, which it does here.
_LEFT_OUT = {"auxiliary_loss"}
_NO_FIELDS = {
    "_name_or_path", "architectures", "chunk_size_feed_forward", "dtype", "id2label",
    "is_encoder_decoder", "label2id", "output_attentions", "output_hidden_states", "problem_type",
    "return_dict", "transformers_version",
}  # fmt: skip


def network_class(name: str) -> Any:
    """The library's class of an architecture, such as "Detr"; ``ConfigError`` if it has none."""
    transformers = load_transformers()
    try:
        return getattr(transformers, name + CLASS)
    except AttributeError as error:
        raise ConfigError(
            f"MODEL.META_ARCHITECTURE {PREFIX}{name} is not in transformers "
            f"{transformers.__version__}; expected a newer version: pip install -U transformers"
        ) from error


def fields_of(kind: Any) -> set[str]:
    """The fields of a config class that say how its networks are built and trained."""
    base = load_transformers().PreTrainedConfig
    fields, common = ({f.name for f in dataclasses.fields(of)} for of in (kind, base))
    return fields - common


def options_of(folder: Path, name: str) -> dict[str, Any]:
    """The values of ``MODEL.TRANSFORMERS.CONFIG`` for a model in the library's format.

    Args:
        folder: with its ``config.json``.
        name: the architecture.

    Raises:
        CheckpointError: the library refuses the file.
        ConfigError: transformers is not installed, or lacks the architecture.
    """
    kind = network_class(name).config_class
    from huggingface_hub.errors import StrictDataclassError

    try:
        values = kind.from_pretrained(folder).to_dict()
    except (OSError, StrictDataclassError, TypeError, ValueError) as error:
        message = " ".join(str(error).split())
        raise CheckpointError(
            f"{folder}: transformers cannot read its config: {message}"
        ) from error
    usual = kind().to_dict()
    own = fields_of(kind) - _LEFT_OUT
    found = {key: value for key, value in values.items() if key in own and value != usual[key]}
    backbone = values["backbone_config"]  # always whole, since defaults change between versions
    found["backbone_config"] = {k: v for k, v in backbone.items() if k not in _NO_FIELDS}
    return found
