"""Access to the golden numbers, in the layout of :class:`onenet.Predictions`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from helpers.project import ROOT
from onenet import Criterion, HungarianMatcher, MinCostMatcher, Predictions, Targets
from onenet.assignment.costs import PredefinedAnchor, PredefinedPoint, PredictedLocation
from onenet.heads.base import Head
from onenet.heads.deconv import DeconvHead
from onenet.heads.fcos import FCOSHead
from onenet.heads.retinanet import RetinaNetHead

FOLDER = Path(os.environ.get("ONENET_GOLDEN") or ROOT / "tests" / "golden")
NAMES = ("centernet_nodcn", "centernet_dcn", "fcos", "retinanet")
MATCHERS = {"minimum": MinCostMatcher, "hungarian": HungarianMatcher}
LEVEL_SIZES = [(-1, 64), (64, 128), (128, 256), (256, 512), (512, float("inf"))]
_STRIDES = [8, 16, 32, 64, 128]


def load(name: str) -> dict[str, Tensor]:
    """The arrays of ``name``.npz."""
    with np.load(FOLDER / f"{name}.npz") as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def rows(maps: Tensor) -> Tensor:
    """(B, C, …) of the original to (B, N, C)."""
    return maps.flatten(2).transpose(1, 2).contiguous()


def predictions(arrays: dict[str, Tensor]) -> Predictions:
    """Predictions of a ``loss_*`` or ``inference_*`` file."""
    logits, boxes = rows(arrays["logits"]), rows(arrays["boxes"])
    count = logits.shape[1]
    samples, levels = torch.zeros(count, 4), torch.zeros(count, dtype=torch.int64)
    if len(arrays.get("anchors", ())):
        samples = rows(arrays["anchors"])[0]
    elif len(arrays.get("locations", ())):
        samples = rows(arrays["locations"])[0].repeat(1, 2)
    if len(arrays.get("levels", ())):
        levels = arrays["levels"].flatten(1)[0].long()
    return Predictions(logits, boxes, samples, levels)


def targets(arrays: dict[str, Tensor]) -> list[Targets]:
    """Targets of a ``loss_*`` file."""
    size = tuple(arrays["image_size"].tolist())
    return [
        Targets(arrays[f"target_boxes{i}"], arrays[f"target_labels{i}"], size)
        for i in range(len(arrays["logits"]))
    ]


def head(name: str, arrays: dict[str, Tensor]) -> Head:
    """The head of a ``head_*`` file, with its weights, in evaluation mode."""
    weights = {k.removeprefix("weight/"): v for k, v in arrays.items() if k.startswith("weight/")}
    inputs = [arrays[f"input{i}"] for i in range(sum(k.startswith("input") for k in arrays))]
    num_classes = arrays["logits"].shape[1]
    if name.startswith("centernet"):
        stages = [weights[f"deconv.lateral_conv{i}.weight"].shape[0] for i in (1, 2, 3)]
        built = DeconvHead(
            in_channels=[x.shape[1] for x in inputs],
            stride=4,
            num_classes=num_classes,
            deconv_channels=[inputs[-1].shape[1], *stages],
            dcn=name.endswith("_dcn"),
        )
    else:
        common = {
            "in_channels": inputs[0].shape[1],
            "strides": _STRIDES,
            "num_classes": num_classes,
            "num_convs": 2,
            "channels": weights["cls_score.weight"].shape[1],
        }
        sizes = [[x, x * 2 ** (1 / 3), x * 2 ** (2 / 3)] for x in (32, 64, 128, 256, 512)]
        built = (
            FCOSHead(**common) if name == "fcos" else RetinaNetHead(**common, anchor_sizes=sizes)
        )
    missing, unexpected = built.load_state_dict(weights, strict=False)
    assert not unexpected and all(key.endswith("num_batches_tracked") for key in missing)
    return built.eval()


def location_cost(name: str, location: str) -> nn.Module:
    """The location cost of a ``loss_NAME_LOCATION_*`` file."""
    if location == "predicted":
        return PredictedLocation()
    if name == "retinanet":
        return PredefinedAnchor()
    return PredefinedPoint(level_sizes=LEVEL_SIZES if name == "fcos" else None)


def check(
    predictions: Predictions,
    targets: list[Targets],
    criterion: Criterion,
    arrays: dict[str, Tensor],
    close: Callable[[Tensor, Tensor], None],
) -> None:
    """Compare cost, matches, losses and gradients with those of a ``loss_*`` file.

    Args:
        close: asserts that a tensor is nearly the other one.
    """
    predictions.logits.requires_grad_()
    predictions.boxes.requires_grad_()
    match = criterion.matcher
    close(match.cost(predictions, 0, targets[0]), arrays["cost0"])
    matches = match(predictions, targets)
    for i in range(len(targets)):
        here = matches.image == i
        pairs = zip(matches.target[here].tolist(), matches.sample[here].tolist(), strict=True)
        given = (arrays[f"match_{what}{i}"].tolist() for what in ("target", "sample"))
        assert dict(pairs) == dict(zip(*given, strict=True))
    losses = criterion(predictions, targets)
    for term, loss in losses.items():
        close(loss, criterion.weights[term] * arrays[term])
    sum(losses.values()).backward()
    close(predictions.logits.grad, rows(arrays["grad_logits"]))
    close(predictions.boxes.grad, rows(arrays["grad_boxes"]))


def as_set(boxes: Tensor, labels: Tensor) -> set[tuple[float, ...]]:
    """Rounded boxes with their classes: equal scores may stand in another order."""
    return {
        (*(round(x, 3) for x in box.tolist()), int(c)) for box, c in zip(boxes, labels, strict=True)
    }
