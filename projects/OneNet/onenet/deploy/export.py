"""Exporting a detector as one graph from pixels to detections, for ONNX and torch.export."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch.export import Dim, ExportedProgram

from onenet.detector import OneNet
from onenet.errors import ExportError
from onenet.inference.fuse import fold_batch_norms, spell_out_batch_norms
from onenet.inference.optimize import is_plain

from .runtime import IMAGES, OUTPUTS, SIZES, ModelInfo

if TYPE_CHECKING:
    import onnx

# DeformConv needs opset 19, Gelu 20.
OPSET = 20
# Operators that an exported graph must not hold: OneNet needs no NMS, and batch norms are folded.
FORBIDDEN = ("NonMaxSuppression", "BatchNormalization")
# Two detections are the same within these differences in px and in score.
BOX_TOLERANCE, SCORE_TOLERANCE = 1e-2, 1e-4
# Default height and width, larger than any image: the image fills its place in the batch.
_WHOLE = np.iinfo(np.int32).max
# Of a side of the batch, in cells of the largest stride: more than fits into memory.
_MOST_CELLS = 2**20


class Deployed(nn.Module):
    """The graph of an exported file: normalisation, network, decoding and top-k.

    Args:
        model: as loaded, or fused. It is copied to the CPU, and the copy's batch norms are folded.
        bgr: whether the model expects BGR; the input of the graph is RGB in either case.

    Raises:
        ExportError: the model applies NMS, is compiled, or computes in half precision.
    """

    def __init__(self, model: OneNet, bgr: bool = False) -> None:
        super().__init__()
        if model.nms_iou is not None:
            raise ExportError(
                "MODEL.OneNet.NMS is True: NMS is for ablations and cannot be exported. Remove it "
                "or set it to False"
            )
        if not is_plain(model):
            raise ExportError(
                "only models as loaded, or fused, can be exported: set TEST.PRECISION float32 and "
                "TEST.COMPILE False"
            )
        self.model = copy.deepcopy(model).cpu().eval().requires_grad_(False)
        self.model.drop_training_parts()
        # Not prepare(): saved programs support contiguous weights only.
        self.model.to(memory_format=torch.contiguous_format)
        fold_batch_norms(self.model)
        spell_out_batch_norms(self.model)
        self.bgr = bgr

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Detect objects in a batch of padded images.

        Args:
            images: (B, 3, H, W) uint8 RGB; H and W are multiples of the model's
                ``size_divisibility``.
            sizes: (B, 2) or (1, 2) int64, height and width of each image without padding; pixels
                beyond them are ignored.

        Returns:
            ``boxes`` (B, k', 4) float32 xyxy px, not clipped; ``scores`` (B, k') float32 in
            [0, 1], best first; ``labels`` (B, k') int64. k' is the smaller of k and N × K.
        """
        model = self.model
        # Convert first: TensorRT supports no other operation on uint8.
        pixels = images.float()
        pixels = pixels.flip(1) if self.bgr else pixels
        pixels = (pixels - model.pixel_mean) / model.pixel_std
        sizes = sizes.expand(images.shape[0], 2)
        rows = torch.arange(images.shape[2], device=images.device) < sizes[:, :1]
        columns = torch.arange(images.shape[3], device=images.device) < sizes[:, 1:]
        inside = rows[:, None, :, None] & columns[:, None, None, :]
        return model.find(torch.where(inside, pixels, 0.0))


def require(*packages: str) -> None:
    """Raise ``ExportError`` unless these packages, parts of the extra "export", are installed."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(f"ONNX needs {', '.join(missing)}: pip install 'onenet[export]'")


def to_torch(deployed: Deployed) -> ExportedProgram:
    """Trace with ``torch.export``; batch size, height and width stay free, also in ``sizes``."""
    batch = Dim("batch")
    return _trace(deployed, batch, {0: batch})


def to_onnx(deployed: Deployed, info: ModelInfo, *, require_sizes: bool = False) -> onnx.ModelProto:
    """Make the ONNX model, with ``info`` as its metadata.

    Args:
        deployed: the graph.
        info: the metadata.
        require_sizes: make the input ``sizes`` required, which simplifiers and TensorRT otherwise
            take for a constant. By default it is optional; without it, every image fills its place
            in the batch.

    Raises:
        ExportError: onnx or onnxscript is not installed, or the graph holds an operator of
            ``FORBIDDEN``.
    """
    require("onnx", "onnxscript")
    import onnx

    # Traced with one row of sizes, so that the default fits every batch size; given one row per
    # image, ONNX's Expand changes nothing.
    program = torch.onnx.export(
        _trace(deployed, Dim("batch"), {}),
        dynamo=True,
        input_names=[IMAGES, SIZES],
        output_names=list(OUTPUTS),
        opset_version=OPSET,
        verbose=False,
    )
    proto = program.model_proto
    graph = proto.graph
    _name_dimensions(graph.input[0], "batch", 3, "height", "width")
    _name_dimensions(graph.input[1], "batch_or_1", 2)
    for output in graph.output:
        _name_dimensions(output, "batch", "detections", *[4] * (output.name == "boxes"))
    if not require_sizes:
        default = np.full((1, 2), _WHOLE, np.int64)
        graph.initializer.append(onnx.numpy_helper.from_array(default, SIZES))
    _strip(graph)
    for key, value in info.to_metadata().items():
        proto.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(proto)
    check_nodes(proto)
    return proto


def check_nodes(proto: onnx.ModelProto) -> None:
    """Raise ``ExportError`` if the graph or a function of it has an operator of ``FORBIDDEN``."""
    nodes = [*proto.graph.node, *(node for f in proto.functions for node in f.node)]
    found = {node.op_type for node in nodes} & set(FORBIDDEN)
    if found:
        raise ExportError(
            f"the exported graph holds {', '.join(sorted(found))}, which OneNet does not need"
        )


def largest_differences(
    expected: Sequence[np.ndarray], found: Sequence[np.ndarray], image_size: Sequence[int]
) -> tuple[float, float]:
    """Compare two sets of detections of one image.

    Compares every detection with the most similar one of the same class in the other set. The
    detections of lowest score need no counterpart: rounding decides which of them are among the
    best k.

    Args:
        expected, found: boxes (n, 4), scores (n,) and labels (n,) each, n > 0.
        image_size: (H, W) px that the boxes are clipped to.

    Returns:
        The largest difference of a coordinate in px and of a score; infinite if a detection has
        no counterpart.
    """
    height, width = image_size
    px = score = 0.0
    for (boxes, scores, labels), (others, other_scores, other_labels) in (
        (expected, found),
        (found, expected),
    ):
        limits = [width, height] * 2
        apart = np.abs(boxes[:, None].clip(0, limits) - others.clip(0, limits)).max(axis=2)
        unlike = np.abs(scores[:, None] - other_scores)
        other_class = labels[:, None] != other_labels
        apart[other_class] = unlike[other_class] = np.inf
        nearest = np.maximum(apart / BOX_TOLERANCE, unlike / SCORE_TOLERANCE).argmin(axis=1)
        rows = np.arange(len(scores))
        apart, unlike = apart[rows, nearest], unlike[rows, nearest]
        equal = (apart <= BOX_TOLERANCE) & (unlike <= SCORE_TOLERANCE)
        counts = equal | (scores > scores.min() + SCORE_TOLERANCE)
        px = max(px, apart[counts].max(initial=0.0))
        score = max(score, unlike[counts].max(initial=0.0))
    return float(px), float(score)


def _trace(deployed: Deployed, batch: Dim, dims_of_sizes: dict[int, Dim]) -> ExportedProgram:
    stride = deployed.model.size_divisibility
    # Large enough that no feature map has a side of 1, which torch.export treats as a constant.
    height, width = 9 * stride, 11 * stride
    count = 2 if dims_of_sizes else 1
    example = (
        torch.zeros(2, 3, height, width, dtype=torch.uint8),
        torch.tensor([[height, width]] * count),
    )
    # torch 2.4 multiplies the limits, too.
    rows, columns = Dim("rows", max=_MOST_CELLS), Dim("columns", max=_MOST_CELLS)
    dims = {0: batch, 2: stride * rows, 3: stride * columns}
    try:
        with torch.no_grad():
            return torch.export.export(
                deployed, example, dynamic_shapes={IMAGES: dims, SIZES: dims_of_sizes}
            )
    except TorchDynamoException as error:
        line = next(filter(None, str(error).splitlines()), type(error).__name__)
        raise ExportError(
            f"torch {torch.__version__} cannot trace the model ({line:.200}): export with torch "
            "2.11 or later, which loads the same checkpoint"
        ) from error


def _name_dimensions(value: onnx.ValueInfoProto, *names: str | int) -> None:
    for dim, name in zip(value.type.tensor_type.shape.dim, names, strict=True):
        dim.Clear()
        if isinstance(name, str):
            dim.dim_param = name
        else:
            dim.dim_value = name


def _strip(graph: onnx.GraphProto) -> None:
    """Remove what the exporter records of the Python code (with paths) and of symbolic shapes."""
    del graph.value_info[:]
    for part in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
