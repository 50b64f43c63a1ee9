"""What ``TEST.EVALUATOR`` can name, for both engines.

An evaluator of your own needs no change here::

    @EVALUATOR_REGISTRY.register()
    def my_score(cfg):  # TEST.EVALUATOR "my_score"
        return Evaluator("mine", score)  # mine/NAME for every metric of score(truth, results)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fvcore.common.registry import Registry

from onenet.errors import ConfigError, look_up

from .coco import average_precision
from .crowdhuman import evaluate_crowdhuman


@dataclass(frozen=True)
class Evaluator:
    """How the detections of a data set are scored.

    Attributes:
        group: what the metrics' names start with, as in ``crowdhuman/AP``.
        score: ``(truth, results) -> metrics by name``, from the content of the data set's COCO file
            without the boxes that loaders leave out (:func:`~.truth.counted`), and all detections
            in COCO's results format, which are finite. It is called if there is an object to find;
            the names do not depend on the detections.
        lower: names of the metrics that are better when lower, for ``TEST.BEST_METRIC``.
    """

    group: str
    score: Callable[[Mapping[str, Any], Sequence[Mapping[str, Any]]], dict[str, float]]
    lower: tuple[str, ...] = ()


# ``cfg -> Evaluator``; raises ConfigError if it does not fit the config.
EVALUATOR_REGISTRY = Registry("ONENET_EVALUATOR")


def choose_evaluator(cfg: Any) -> Evaluator:
    """The evaluator that ``TEST.EVALUATOR`` names.

    Raises:
        ConfigError: an unknown name, or one that does not fit the config.
    """
    return look_up(EVALUATOR_REGISTRY, "TEST.EVALUATOR", cfg.TEST.EVALUATOR)(cfg)


@EVALUATOR_REGISTRY.register()
def coco(cfg: Any) -> Evaluator:
    """COCO's AP of boxes, overall and by class."""
    most = cfg.TEST.DETECTIONS_PER_IMAGE
    return Evaluator("bbox", lambda truth, results: average_precision(truth, results, most))


@EVALUATOR_REGISTRY.register()
def crowdhuman(cfg: Any) -> Evaluator:
    """AP, log-average miss rate and recall of one class; crowd regions are ignored."""
    classes = cfg.MODEL.OneNet.NUM_CLASSES
    if classes != 1:
        raise ConfigError(
            "TEST.EVALUATOR 'crowdhuman' is for a single class, but MODEL.OneNet.NUM_CLASSES is "
            f"{classes}; expected TEST.EVALUATOR coco"
        )
    return Evaluator(
        "crowdhuman",
        lambda truth, results: evaluate_crowdhuman(truth, results).percent(),
        lower=("mMR",),
    )
