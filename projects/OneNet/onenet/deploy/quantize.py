"""Smaller exported files: INT8 by ONNX Runtime's static quantisation, and float16.

Both take and return what the float32 file does, so the runtime needs to know nothing of them.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from onenet.data.dataset import CocoDetection, spread_evenly
from onenet.data.images import resize_shortest_edge
from onenet.data.sources import find_dataset
from onenet.errors import ExportError

from .runtime import IMAGES, SIZES, ModelInfo, pad_images

if TYPE_CHECKING:
    import onnx

# Values of --quantize, and what --half makes.
INT8, FLOAT16 = "int8", "float16"
# What the convolutions of the network are joined by, so that maps stay integers between them.
_INTEGER = ("Conv", "Relu", "MaxPool", "Add")
# Parameters of the layers that predict: their outputs are scores and px, which 8 bits are too few
# for.
PREDICTORS = ("cls_score", "ltrb_pred", "bbox_pred")


def calibration_batches(
    data: str, info: ModelInfo, count: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Images of a data set as the deployed model gets them, one a batch.

    Args:
        data: ``ANNOTATIONS.json:FOLDER``; its objects are not read.
        info: how images are resized and padded.
        count: of images, spread evenly over the data set.

    Yields:
        The two inputs of an exported model; see :func:`~.runtime.pad_images`.

    Raises:
        DatasetError: the data set or an image cannot be read.
    """
    dataset = CocoDetection(find_dataset(data), need_annotations=False)
    for index in spread_evenly(count, len(dataset)):
        image = dataset.read_image(dataset.record(index))
        yield pad_images([resize_shortest_edge(image, info.min_size, info.max_size)], info.stride)


def to_int8(
    model: onnx.ModelProto, batches: Iterable[tuple[np.ndarray, np.ndarray]]
) -> onnx.ModelProto:
    """Quantise a model's network, but for the layers that predict; the rest stays float32.

    Weights are signed, by channel, and have 7 bits, as processors without VNNI add up products in
    16 bits, which 8 would overflow. Maps are unsigned 8 bits, from the least to the greatest value
    that the batches gave. Transposed convolutions stay float32: ONNX Runtime has no integer ones
    for CPUs.

    Args:
        model: of :func:`~.export.to_onnx`; not modified.
        batches: inputs to calibrate with.

    Raises:
        ExportError: see :func:`network_nodes`.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    nodes = network_nodes(model)
    with tempfile.TemporaryDirectory() as folder, _without_advice():
        path = Path(folder) / "int8.onnx"
        quantize_static(
            _copy(model),
            path,
            _Reader(batches),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=list(_INTEGER),
            nodes_to_quantize=[node.name for node in nodes if node.op_type in _INTEGER],
            calibrate_method=CalibrationMethod.MinMax,
            calibration_providers=["CPUExecutionProvider"],
        )
        return _finished(path.read_bytes(), model)


def to_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Compute a model's network in float16; inputs, normalisation, decoding and top-k stay float32.

    So do the layers that predict, and deformable convolutions, for which ONNX Runtime has no
    float16.

    Args:
        model: of :func:`~.export.to_onnx`; not modified.

    Raises:
        ExportError: a weight is beyond float16's 65,504; names it. Or see :func:`network_nodes`.
    """
    import onnx
    from onnx import TensorProto, helper

    half = _copy(model)
    kept = ("DeformConv",)
    inside = {node.name for node in network_nodes(half) if node.op_type not in kept}
    typed = onnx.shape_inference.infer_shapes(half).graph
    floats = {
        value.name
        for value in (*typed.value_info, *typed.input, *typed.output)
        if value.type.tensor_type.elem_type == TensorProto.FLOAT
    }
    weights = {
        tensor.name: tensor
        for tensor in half.graph.initializer
        if tensor.data_type == TensorProto.FLOAT
    }
    nodes: list[onnx.NodeProto] = []
    made: set[str] = set()  # float16 tensors
    casts: dict[tuple[str, int], str] = {}

    def cast(name: str, kind: int, ending: str) -> str:
        if (name, kind) not in casts:
            casts[name, kind] = name + ending
            nodes.append(helper.make_node("Cast", [name], [name + ending], name + ending, to=kind))
        return casts[name, kind]

    for node in half.graph.node:
        if node.name not in inside:
            for i, name in enumerate(node.input):
                if name in made:
                    node.input[i] = cast(name, TensorProto.FLOAT, "_float32")
            nodes.append(node)
            continue
        for i, name in enumerate(node.input):
            if node.op_type == "Resize" and i in (1, 2):
                continue  # the region and the scales are float32 for maps of every type
            if name in weights:
                node.input[i] = _half_weight(half, weights[name])
            elif name in floats and name not in made:
                node.input[i] = cast(name, TensorProto.FLOAT16, "_float16")
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
        made.update(name for name in node.output if name in floats)
        nodes.append(node)
    del half.graph.node[:]
    half.graph.node.extend(nodes)
    read = {name for node in nodes for name in node.input}
    stored = [t for t in half.graph.initializer if t.name in read]
    del half.graph.initializer[:]
    half.graph.initializer.extend(stored)
    return _finished(half.SerializeToString(), model)


def _half_weight(model: onnx.ModelProto, tensor: onnx.TensorProto) -> str:
    """The name of a float16 copy of an initializer, which is added to the model."""
    from onnx import numpy_helper

    name = f"{tensor.name}_float16"
    if all(other.name != name for other in model.graph.initializer):
        values = numpy_helper.to_array(tensor)
        if np.abs(values).max(initial=0.0) > np.finfo(np.float16).max:
            raise ExportError(f"{tensor.name} has values beyond float16's 65,504: leave out --half")
        model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float16), name))
    return name


def describe(model: onnx.ModelProto, precision: str) -> None:
    """Add to a model's metadata ``precision``, in what its network computes: a constant above."""
    model.metadata_props.add(key="precision", value=precision)


def network_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The nodes between the first convolution and the layers that predict, without these.

    They are computed from the first convolution's output, and one of ``PREDICTORS`` from them:
    neither the normalisation of pixels nor grids of points and decoding are among them.

    Raises:
        ExportError: no layer has one of those names.
    """
    nodes = list(model.graph.node)
    convs = [i for i, node in enumerate(nodes) if node.op_type == "Conv"]
    last = {i for i in convs if any(name in nodes[i].input[1] for name in PREDICTORS)}
    if not last:
        raise ExportError(
            "no layer that predicts was found, so that it could stay in float32: the head has none "
            f"called {', '.join(PREDICTORS)}"
        )
    made = set()
    for i, node in enumerate(nodes):
        if i == convs[0] or (i not in last and made.intersection(node.input)):
            made.update(node.output)
    read = {nodes[i].input[0] for i in last}
    for i in reversed(range(len(nodes))):
        if i not in last and read.intersection(nodes[i].output):
            read.update(nodes[i].input)
    return [
        node
        for i, node in enumerate(nodes)
        if i not in last and made.intersection(node.output) and read.intersection(node.output)
    ]


@contextmanager
def _without_advice() -> Iterator[None]:
    """Within this context, ONNX Runtime logs errors only.

    It advises folding that the export has done, and warns of every input with a default.
    """
    import onnxruntime

    log = logging.getLogger()
    level = log.level
    log.setLevel(logging.ERROR)
    onnxruntime.set_default_logger_severity(3)
    try:
        yield
    finally:
        onnxruntime.set_default_logger_severity(2)
        log.setLevel(level)


class _Reader:
    """Gives batches to ONNX Runtime's calibration, which reads them once."""

    def __init__(self, batches: Iterable[tuple[np.ndarray, np.ndarray]]) -> None:
        self.batches: Iterator[tuple[np.ndarray, np.ndarray]] = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self.batches, None)
        return None if batch is None else dict(zip((IMAGES, SIZES), batch, strict=True))


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = type(model)()
    copy.CopyFrom(model)
    return copy


def _finished(content: bytes, model: onnx.ModelProto) -> onnx.ModelProto:
    """A converted model with the original's metadata, checked."""
    import onnx

    converted = onnx.load_model_from_string(content)
    del converted.metadata_props[:]
    converted.metadata_props.extend(model.metadata_props)
    del converted.graph.value_info[:]
    onnx.checker.check_model(converted)
    return converted
