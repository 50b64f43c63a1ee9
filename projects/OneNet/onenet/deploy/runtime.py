"""Running an exported model; needs NumPy, Pillow and ONNX Runtime, not torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from onenet.data.arrays import check_images
from onenet.data.batching import group_by_shape, pad_to
from onenet.data.images import resize_shortest_edge
from onenet.data.sources import is_line
from onenet.errors import ExportedModelError, OneNetError
from onenet.evaluation.best_threshold import BEST, best_threshold
from onenet.inference.tiles import TiledPrediction

IMAGES, SIZES = "images", "sizes"
OUTPUTS = ("boxes", "scores", "labels")


@dataclass(frozen=True)
class ModelInfo:
    """The metadata of an exported file.

    Attributes:
        class_names: names of the labels 0, 1, ….
        max_detections: k, the largest number of detections per image.
        min_size, max_size: px that the shortest edge is resized to, and the limit of the longest
            edge; ``min_size`` 0 leaves images as they are.
        stride: height and width of the input are multiples of this many px.
        input_format, input_layout: channel order and layout of the uint8 input.
        ema: whether the weights are a moving average over training.
        config: name of the config file.
        onenet_version: version of the package that wrote the file.
        best_threshold: the confidence threshold of best F1 in the weights' evaluation; ``None`` if
            it was not known. Files of older versions lack it.
    """

    class_names: list[str]
    max_detections: int
    min_size: int
    max_size: int
    stride: int
    input_format: str
    input_layout: str
    ema: bool
    config: str
    onenet_version: str
    best_threshold: float | None = None

    def to_metadata(self) -> dict[str, str]:
        """The fields as text: strings as they are, other values as JSON."""
        return {
            name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_metadata(cls, texts: Mapping[str, str]) -> ModelInfo:
        """Inverse of :meth:`to_metadata`.

        Raises:
            ExportedModelError: a field is missing or has a wrong value; the message names it.
        """
        missing = [f.name for f in fields(cls) if f.name not in texts and f.default is MISSING]
        if missing:
            raise ExportedModelError(
                f"not a file of tools/export.py: its metadata lacks {', '.join(missing)}"
            )
        known = [f for f in fields(cls) if f.name in texts]
        return cls(**{f.name: _read(f.name, str(f.type), texts[f.name]) for f in known})


def _read(name: str, kind: str, text: str) -> Any:
    try:
        value = text if kind == "str" else json.loads(text)
    except json.JSONDecodeError:
        value = None
    good = {
        "str": is_line(value),
        "bool": isinstance(value, bool),
        "int": type(value) is int and value >= (name != "min_size"),
        "list[str]": isinstance(value, list) and bool(value) and all(map(is_line, value)),
        "float | None": text == "null" or type(value) in (int, float) and 0 <= value <= 1,
    }
    if not good[kind]:
        raise ExportedModelError(
            f"not a file of tools/export.py: {name} in its metadata is {text!r:.60}"
        )
    return value


@dataclass(frozen=True)
class ArrayDetections:
    """The detections of one image as NumPy arrays, best score first.

    Attributes:
        boxes: (n, 4) float32 xyxy px.
        scores: (n,) float32 in [0, 1].
        labels: (n,) int64 in [0, K).
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, keep: np.ndarray | slice) -> ArrayDetections:
        """The detections that a mask, an index array or a slice selects."""
        return ArrayDetections(self.boxes[keep], self.scores[keep], self.labels[keep])


class OnnxPredictor(TiledPrediction):
    """Detects objects in images of any size with an exported model.

    Args:
        path: a file written by ``tools/export.py --format onnx``.
        providers: ONNX Runtime's execution providers in order of preference; None: CUDA if this
            ONNX Runtime has it, then the CPU.
        threads: number of CPU threads per operator; None: all cores.
        images_per_batch: largest number of images that go through the network together.
        confidence_threshold: the lowest score of a detection; "best": that of best F1, from the
            file's metadata, or else from the ``report.json`` beside it.

    Attributes:
        info: the file's metadata.
        class_names: name of each label.
        confidence_threshold: the number that is in use.

    Raises:
        ExportedModelError: no such file, not an exported OneNet, one that lost an input to a
            simplifier, ONNX Runtime is not installed, or it lacks a provider.
        OneNetError: a wrong threshold, or the best one is not known; says what to run.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        providers: Sequence[str] | None = None,
        threads: int | None = None,
        images_per_batch: int = 8,
        confidence_threshold: float | str = 0.0,
    ) -> None:
        self.session = open_session(path, providers, threads)
        self.images_per_batch = images_per_batch
        try:
            self.info = ModelInfo.from_metadata(self.session.get_modelmeta().custom_metadata_map)
        except ExportedModelError as error:
            raise ExportedModelError(f"{path} is {error}") from None
        self.class_names = self.info.class_names
        check_inputs(path, self.session)
        self.confidence_threshold = self._threshold(Path(path), confidence_threshold)

    def _threshold(self, path: Path, value: float | str) -> float:
        if value == BEST:
            known = self.info.best_threshold
            return (
                best_threshold(path, self.class_names, checkpoint=False) if known is None else known
            )
        if isinstance(value, str) or not 0 <= value <= 1:
            raise OneNetError(f"confidence_threshold must be from 0 to 1, or 'best', got {value!r}")
        return value

    def __call__(self, image: np.ndarray) -> ArrayDetections:
        """Detect objects in one image, (H, W, 3) uint8 RGB; see :meth:`predict_batch`."""
        return self.predict_batch([image])[0]

    def predict_batch(self, images: Sequence[np.ndarray]) -> list[ArrayDetections]:
        """Detect objects in several images.

        Images of the same padded shape go through the network together; the detections of an image
        do not depend on the others.

        Args:
            images: (H, W, 3) uint8 RGB each.

        Returns:
            For each image at most ``info.max_detections`` detections, in px of the image and
            clipped to it.

        Raises:
            DatasetError: an image is something else; says what to do.
        """
        info = self.info
        images = check_images(images)
        scaled = [resize_shortest_edge(image, info.min_size, info.max_size) for image in images]
        shapes = (image.shape[:2] for image in scaled)
        found: dict[int, ArrayDetections] = {}
        for group in group_by_shape(shapes, self.images_per_batch, info.stride):
            batch, sizes = pad_images([scaled[i] for i in group], info.stride)
            outputs = self.session.run(OUTPUTS, {IMAGES: batch, SIZES: sizes})
            for i, size, *values in zip(group, sizes, *outputs, strict=True):
                detections = _to_image(ArrayDetections(*values), size, images[i].shape[:2])
                found[i] = detections[detections.scores >= self.confidence_threshold]
        return [found[i] for i in range(len(images))]


def open_session(
    path: str | PathLike[str],
    providers: Sequence[str] | None = None,
    threads: int | None = None,
) -> Any:
    """Open an ``onnxruntime.InferenceSession``; arguments and errors as in :class:`OnnxPredictor`.

    Does not check the file's metadata.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ExportedModelError(
            f"running {path} needs ONNX Runtime ({error}): pip install 'onenet[export]'"
        ) from error
    if not Path(path).is_file():
        raise ExportedModelError(f"{path}: there is no such file")
    available = onnxruntime.get_available_providers()
    if providers is None:
        preferred = ("CUDAExecutionProvider", "CPUExecutionProvider")
        providers = [name for name in preferred if name in available]
    unknown = [name for name in providers if name not in available]
    if unknown:
        raise ExportedModelError(
            f"this ONNX Runtime has no {', '.join(unknown)}; it has {', '.join(available)}"
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only: it warns of every input with a default
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(path, options, list(providers))
    except Exception as error:  # its errors have no common base class
        raise ExportedModelError(f"ONNX Runtime cannot load {path}: {error}") from error


def check_inputs(path: str | PathLike[str], session: Any) -> None:
    """Raise ``ExportedModelError`` unless a file still has the inputs that the export gave it."""
    inputs = [*session.get_inputs(), *session.get_overridable_initializers()]
    missing = [name for name in (IMAGES, SIZES) if name not in [value.name for value in inputs]]
    if missing:
        raise ExportedModelError(
            f"{path} has no input {' and '.join(missing)}, which tools/export.py gave it. A "
            "simplifier (onnxsim, onnxslim) or converter takes the default of sizes for a constant "
            "and removes it: export with --require-sizes, and simplify that file"
        )


def pad_images(images: Sequence[np.ndarray], stride: int) -> tuple[np.ndarray, np.ndarray]:
    """Make the inputs of an exported model: pad images on the right and below to one size.

    Args:
        images: (H, W, 3) uint8 each.
        stride: px; padded sides are multiples of it.

    Returns:
        (B, 3, H', W') uint8, and (B, 2) int64, height and width of each image without padding.
    """
    sizes = np.array([image.shape[:2] for image in images], np.int64)
    height, width = (pad_to(int(side), stride) for side in sizes.max(axis=0))
    batch = np.zeros((len(images), 3, height, width), np.uint8)
    for row, image in zip(batch, images, strict=True):
        row[:, : image.shape[0], : image.shape[1]] = image.transpose(2, 0, 1)
    return batch, sizes


def _to_image(
    found: ArrayDetections, from_size: Sequence[int], to_size: Sequence[int]
) -> ArrayDetections:
    """The same as :func:`onenet.inference.postprocess.to_image`, on arrays."""
    (height, width), (new_height, new_width) = from_size, to_size
    scale = np.array([new_width / width, new_height / height] * 2, np.float32)
    boxes = (found.boxes * scale).clip(0, np.array([new_width, new_height] * 2, np.float32))
    keep = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    return ArrayDetections(boxes, found.scores, found.labels)[keep]
