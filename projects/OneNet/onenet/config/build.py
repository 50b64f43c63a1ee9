"""From a config to the core's objects: the one place that maps keys to constructors' arguments.

Works on Detectron2's ``CfgNode`` and on the embedded engine's alike: both descend from yacs. Parts
with a registry are built in :mod:`onenet.heads.registry` and :mod:`onenet.assignment.registry`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from onenet.assignment.registry import build_aux_criterion, build_criterion
from onenet.detector import DenseDetector
from onenet.errors import ConfigError, look_up
from onenet.heads.base import Head
from onenet.heads.branch import Branch
from onenet.heads.registry import HEAD_REGISTRY
from onenet.inference.optimize import check_graphs, prepare

from .device import warn_of_bfloat16


def model_options(
    cfg: Any, backbone: nn.Module, shapes: Mapping[str, Any], *, training: bool = True
) -> dict[str, Any]:
    """The arguments of :class:`~onenet.detector.OneNet` around an engine's backbone.

    Args:
        shapes: of the backbone's maps by name, each with ``channels`` and ``stride``.
        training: with the one-to-many branch, if ``MODEL.OneNet.AUX`` asks for one.

    Raises:
        ConfigError: names the key whose value does not fit.
        ValueError: a constructor refuses a value.
    """
    head = build_head(cfg, shapes)
    options = {**frame_options(cfg, backbone), "head": head, "criterion": build_criterion(cfg)}
    if training and cfg.MODEL.OneNet.AUX.ENABLED:
        options |= {"aux": build_branch(cfg, head), "aux_criterion": build_aux_criterion(cfg)}
    return options


def build_branch(cfg: Any, head: Head) -> Branch:
    """The one-to-many branch of a head, as ``MODEL.OneNet.AUX`` says.

    Raises:
        ConfigError: the head has none.
    """
    aux = cfg.MODEL.OneNet.AUX
    try:
        return head.make_branch(
            share_boxes=aux.SHARE_BOXES, detach=aux.DETACH, main_gradient=aux.MAIN_GRADIENT
        )
    except NotImplementedError as error:
        raise ConfigError(
            f"MODEL.OneNet.AUX.ENABLED is True, but the head {cfg.MODEL.OneNet.HEAD!r} "
            f"({error}); expected False, or a head that defines make_branch()"
        ) from error


def frame_options(cfg: Any, backbone: nn.Module | None) -> dict[str, Any]:
    """The arguments that depend on neither the head nor the criterion."""
    return {
        "backbone": backbone,
        "in_features": cfg.MODEL.OneNet.IN_FEATURES,
        "pixel_mean": cfg.MODEL.PIXEL_MEAN,
        "pixel_std": cfg.MODEL.PIXEL_STD,
        "max_detections": cfg.TEST.DETECTIONS_PER_IMAGE,
        "nms_iou": 0.5 if cfg.MODEL.OneNet.NMS else None,
    }


def build_head(cfg: Any, shapes: Mapping[str, Any]) -> Head:
    """The head that ``MODEL.OneNet.HEAD`` names; ``shapes`` as in :func:`model_options`."""
    inputs = head_shapes(cfg, shapes)
    c = cfg.MODEL.OneNet
    head = look_up(HEAD_REGISTRY, "MODEL.OneNet.HEAD", c.HEAD)(cfg, inputs)
    built = {"NUM_HEADS": head.num_stages, "INFERENCE_HEADS": head.inference_stages}
    for key, count in built.items():
        if c[key] != count:
            raise ConfigError(
                f"MODEL.OneNet.{key} is {c[key]}, but the head {c.HEAD!r} has {count}; expected "
                f"{count}, or MODEL.OneNet.HEAD 'CenterNet', which has as many as NUM_HEADS says"
            )
    return head


def head_shapes(cfg: Any, shapes: Mapping[str, Any]) -> list[Any]:
    """The shapes of ``MODEL.OneNet.IN_FEATURES``; ``ConfigError`` if the backbone lacks one."""
    names = cfg.MODEL.OneNet.IN_FEATURES
    missing = [name for name in names if name not in shapes]
    if missing:
        raise ConfigError(
            f"MODEL.OneNet.IN_FEATURES names {', '.join(missing)}, but the backbone "
            f"({cfg.MODEL.BACKBONE.NAME}) makes {', '.join(shapes)}"
        )
    return [shapes[name] for name in names]


def prepare_inference(cfg: Any, model: nn.Module) -> nn.Module:
    """Prepare a model on its device as ``TEST.FUSE``, ``PRECISION`` and ``COMPILE`` say.

    For models that will not train: predictors and ``--eval-only``, not the evaluations during
    training. Models other than OneNet's are only put in evaluation mode.

    Returns:
        The model itself, in evaluation mode.

    Raises:
        ConfigError: a precision that the device does not have, or keys that the model does not
            honour.
    """
    test = cfg.TEST
    if isinstance(model, DenseDetector):
        if test.CUDA_GRAPHS:
            try:
                check_graphs(model, compile=test.COMPILE)
            except ValueError as error:
                raise ConfigError(f"TEST.CUDA_GRAPHS: {error}") from error
        prepare_model = partial(prepare, model, cuda_graphs=test.CUDA_GRAPHS)
    elif test.CUDA_GRAPHS:
        raise ConfigError(
            "TEST.CUDA_GRAPHS is OneNet's, CenterNet's and YOLOv1's; leave it out for "
            f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE}"
        )
    elif hasattr(model, "prepare_inference"):
        prepare_model = model.prepare_inference
    else:
        if test.PRECISION != "float32" or test.COMPILE:
            raise ConfigError(
                "TEST.PRECISION and TEST.COMPILE are OneNet's; leave them out for "
                f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE}"
            )
        return model.eval()
    if test.PRECISION == "bfloat16":
        warn_of_bfloat16(next(model.parameters()).device, "TEST.PRECISION float32")
    try:
        return prepare_model(fuse=test.FUSE, precision=test.PRECISION, compile=test.COMPILE)
    except ValueError as error:
        raise ConfigError(f"TEST.PRECISION: {error}") from error
