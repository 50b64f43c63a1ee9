"""The class layer of a checkpoint whose classes are not named like the model's."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from onenet.data.sources import shortened

logger = logging.getLogger(__name__)


def fit_class_layer(
    path: Path,
    state: dict[str, Tensor],
    own: Mapping[str, Tensor],
    layer: Collection[str],
    trained: Sequence[str],
    ours: Sequence[str],
    *,
    tuning: bool,
    by_class: bool,
) -> tuple[set[str], list[str]]:
    """Put the rows of a class layer in the order of the model's classes, by their names.

    To fine-tune, a class that the checkpoint does not name keeps the row that the model has. To
    evaluate, nothing changes unless the checkpoint names all of the classes. The log says what is
    done.

    Args:
        path: of the checkpoint, for the log.
        state: of the checkpoint; changed in place. Its class layer has the model's shape.
        own: the model's state.
        layer: names of the class layer's parameters, whose rows are (A · K, …): A anchors or other
            repetitions of K classes.
        trained: the checkpoint's classes by label; empty if unknown.
        ours: the model's classes by label.
        tuning: the model is going to be trained.
        by_class: the rows are as ``layer`` says. If not, they cannot be mapped.

    Returns:
        The parameters that keep the model's initialisation rather than take what ``state`` holds,
        and the classes that the layer has then, by label.
    """
    kept: tuple[set[str], list[str]] = set(), list(trained)
    started = set(layer), list(ours)
    if kept[1] == list(ours):
        return kept
    classes = len(ours)
    if len(trained) != classes or len({*trained}) < classes or len({*ours}) < classes:
        if tuning:
            logger.info(
                "%s does not name its classes one by one: its class layer is kept, in the order of "
                "category ids",
                path,
            )
        return kept
    new = [name for name in ours if name not in trained]
    if new and not tuning:
        return kept  # the caller warns
    by_class &= all(own[name].dim() and len(own[name]) % classes == 0 for name in layer)
    if not by_class and not tuning:
        return kept
    if len(new) == classes:
        logger.info(
            "%s was trained on as many classes, but on none of the same name (%s; here %s): the "
            "class layer keeps its initialisation",
            path,
            shortened(trained),
            shortened(ours),
        )
        return started
    if not by_class:
        logger.info(
            "%s names its classes differently (%s; here %s), and this detector's class layer "
            "cannot be mapped by name: it keeps its initialisation",
            path,
            shortened(trained),
            shortened(ours),
        )
        return started
    old = [name for name in ours if name in trained]
    for name in layer:
        state[name] = _rows(state[name], own[name], trained, ours)
    if new:
        logger.info(
            "%s was trained on as many classes, %d of them of the same name: the class layer takes "
            "over %s by name; %s keep their initialisation",
            path,
            len(old),
            shortened(old),
            shortened(new),
        )
    else:
        logger.info(
            "%s has the same classes in another order (%s; here %s): the class layer is mapped by "
            "name",
            path,
            shortened(trained),
            shortened(ours),
        )
    return set(), list(ours)


def _rows(theirs: Tensor, own: Tensor, trained: Sequence[str], ours: Sequence[str]) -> Tensor:
    to = [label for label, name in enumerate(ours) if name in trained]
    origin = [trained.index(ours[label]) for label in to]
    result = own.detach().clone()
    shape = (-1, len(ours), *own.shape[1:])
    grouped = result.view(shape)
    grouped[:, to] = theirs.to(result).reshape(shape)[:, origin]
    return result
