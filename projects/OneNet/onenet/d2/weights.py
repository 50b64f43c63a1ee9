"""``MODEL.WEIGHTS``, including the addresses that only Detectron2 knows."""

from __future__ import annotations

from typing import Any

from detectron2.utils.file_io import PathManager
from torch import nn

from onenet.checkpoints import weights as checkpoint
from onenet.errors import CheckpointError


def fetch_weights(weights: str) -> str:
    """The local file behind ``MODEL.WEIGHTS``, fetched if necessary.

    Args:
        weights: see :func:`onenet.checkpoints.weights.locate_weights`; also ``detectron2://`` and
            the other addresses of Detectron2's ``PathManager``.

    Raises:
        CheckpointError: the file is missing, the address unknown, or the network down.
    """
    if "://" not in weights or checkpoint.is_address(weights):
        return str(checkpoint.locate_weights(weights))
    try:
        return str(checkpoint.locate_weights(PathManager.get_local_path(weights)))
    except CheckpointError as error:  # PathManager treats an unknown address as a path
        raise CheckpointError(f"MODEL.WEIGHTS {weights}: unknown address") from error
    except Exception as error:  # each of its handlers has errors of its own
        raise CheckpointError(
            f"MODEL.WEIGHTS {weights} could not be fetched ({error}). Download the file and give "
            "its path, or train from scratch with MODEL.WEIGHTS ''"
        ) from error


def load_weights(model: nn.Module, weights: str, **options: Any) -> dict[str, Any]:
    """:func:`onenet.checkpoints.weights.load_weights` from what :func:`fetch_weights` finds."""
    return checkpoint.load_weights(model, fetch_weights(weights), **options)
