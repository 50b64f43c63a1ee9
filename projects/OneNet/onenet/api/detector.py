"""Detecting in four lines: ``onenet.load("model.pth").predict("image.jpg")``."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from onenet.data.images import IMAGE_FORMATS, read_image
from onenet.deploy.runtime import OnnxPredictor
from onenet.errors import CheckpointError, OneNetError
from onenet.inference.tiles import check_tiles
from onenet.training.progress import progress

from .detections import ImageDetections
from .inputs import find_images

if TYPE_CHECKING:
    from .model_files import ModelFiles

ONNX, PROGRAM = ".onnx", ".pt2"
THRESHOLD = 0.4  # lowest score, as in the demo


def load(
    weights: str | PathLike[str],
    config: str | PathLike[str] | None = None,
    *,
    engine: str = "auto",
    imports: Sequence[str] = (),
    **overrides: Any,
) -> Detector:
    """Load a trained detector.

    Args:
        weights: a checkpoint of either engine (``.pth``), or an exported file (``.onnx``), which
            needs no torch; also an address that ``MODEL.WEIGHTS`` takes.
        config: of a checkpoint: its YAML, or the name of a config that comes with the package.
            ``None``: the one in the checkpoint, or ``config.yaml`` beside it, as in a run's folder.
        engine: "auto", "detectron2" or "lightning"; "auto" takes Detectron2 where it is installed.
        imports: Python files of yours to run first, which register what the config names.
        overrides: config values, such as ``device="cpu"``: see :func:`onenet.train`.

    Raises:
        CheckpointError: no such file, it is unsafe, or no config is found for it.
        ConfigError: the config or an override is wrong.
        ExportedModelError: the ``.onnx`` file is not an exported OneNet, or cannot run here.
    """
    weights = str(weights)
    if weights.endswith(PROGRAM):
        raise OneNetError(
            f"{weights}: a file of torch.export runs with torch.export.load (docs/deployment.md); "
            "load the checkpoint, or export to .onnx"
        )
    if weights.endswith(ONNX):
        if config is not None or imports or overrides or engine != "auto":
            raise OneNetError(
                f"{weights} is a complete model: leave out config, engine, imports and values"
            )
        return Detector(OnnxPredictor(_local(weights)), weights)
    from onenet.config.imports import import_files

    from .model_files import find_model
    from .overrides import to_opts

    import_files(imports)
    files = find_model(weights, config, engine, to_opts(overrides))
    return Detector(_build(files), weights, files)


def load_checkpoint(weights: str, *, engine: str, opts: Sequence[str]) -> Any:
    """The predictor of a checkpoint with overrides ``KEY VALUE …``, as a command line has them."""
    from .model_files import find_model

    return _build(find_model(weights, None, engine, opts))


def _build(files: ModelFiles) -> Any:
    module = importlib.import_module(f"{files.engine}.predictor")
    # A new model draws its weights before it gets those of the file.
    with files.config_file() as file, importlib.import_module("torch").random.fork_rng(devices=[]):
        return module.build_predictor(file, files.all_opts())


def _local(weights: str) -> str:
    if "://" not in weights:
        return str(Path(weights).expanduser())
    return str(importlib.import_module("onenet.checkpoints.weights").locate_weights(weights))


class Detector:
    """A trained detector; :func:`load` and :func:`onenet.train` return one.

    Args:
        predictor: an engine's, or :class:`~onenet.deploy.runtime.OnnxPredictor`.
        weights: where it comes from.
        files: its config and engine; ``None``: an exported model.

    Attributes:
        predictor: as given; detects in arrays.
        weights: as given.
        class_names: name of each label.
        metrics: of the evaluation that ended its training; empty if it was loaded.
    """

    def __init__(self, predictor: Any, weights: str, files: ModelFiles | None = None) -> None:
        self.predictor, self.weights, self._files = predictor, weights, files
        self.class_names: list[str] = list(predictor.class_names)
        self.metrics: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"<OneNet detector of {len(self.class_names)} classes, {self.weights}>"

    def predict(
        self,
        images: Any,
        *,
        threshold: float = THRESHOLD,
        channels: str = "RGB",
        tiles: int | None = None,
        overlap: float | None = None,
    ) -> Any:
        """Detect objects in one image or in several.

        Args:
            images: a path; an array (H, W, 3) uint8; a Pillow image; or a folder (searched with its
                subfolders), a glob, or a list of any of these. Files are turned upright by their
                EXIF orientation; Pillow images are taken as they are.
            threshold: lowest score of a detection.
            channels: order of an array's channels: "RGB", or "BGR" as from ``cv2.imread``.
            tiles: px, for small objects in large images: detect in tiles of this side, and merge
                boxes across their seams; 0: in the whole image. ``None``: ``TEST.TILES``.
            overlap: share of a tile's side that neighbours have in common; ``None``:
                ``TEST.TILE_OVERLAP``, usually 0.2.

        Returns:
            :class:`~.detections.ImageDetections` of one image; a list of them for a folder, glob or
            list, in the order of the images.

        Raises:
            DatasetError: an image is something else (says how to convert it), or there are no
                such tiles.
            UnreadableImageError: a file is missing or damaged.
        """
        if not 0 <= threshold <= 1:
            raise OneNetError(f"threshold must be between 0 and 1, got {threshold}")
        if channels not in IMAGE_FORMATS:
            raise OneNetError(f"channels must be {' or '.join(IMAGE_FORMATS)}, got {channels!r}")
        tiles = self.predictor.tiles if tiles is None else tiles
        if overlap is not None and not tiles:
            raise OneNetError("overlap is for tiles: give tiles=")
        overlap = self.predictor.tile_overlap if overlap is None else overlap
        check_tiles(tiles, overlap)
        items, single = list_images(images)
        found = self._detect(items, channels, tiles, overlap)
        found = (one[one.scores >= threshold] for one in found)
        found = list(progress(found, shows=len(items) > 1, total=len(items), unit="image"))
        return found[0] if single else found

    def _detect(
        self, items: Iterable[Any], channels: str, tiles: int, overlap: float
    ) -> Iterator[ImageDetections]:
        items = iter(items)
        while batch := list(islice(items, 1 if tiles else self.predictor.images_per_batch)):
            pixels = [to_array(item, channels) for item in batch]
            if tiles:
                found = [self.predictor.predict_tiles(pixels[0], tiles, overlap)]
            else:
                found = self.predictor.predict_batch(pixels)
            for item, image, one in zip(batch, pixels, found, strict=True):
                arrays = (np.asarray(values) for values in (one.boxes, one.scores, one.labels))
                is_file = isinstance(item, Path)
                yield ImageDetections(
                    *arrays,
                    parts=one.parts if tiles else np.ones(len(one), np.int64),
                    class_names=self.class_names,
                    size=tuple(image.shape[:2]),
                    path=item if is_file else None,
                    _pixels=None if is_file else image,
                )

    def evaluate(
        self,
        data: str | Sequence[str] | None = None,
        *,
        output: str | None = None,
        **overrides: Any,
    ) -> dict[str, float]:
        """Score the detector on a data set.

        Args:
            data: ``ANNOTATIONS.json:IMAGE_FOLDER`` or a known name, or a list of them; ``None``:
                ``DATASETS.TEST`` of its config.
            output: folder for the results file and the log; ``None``: keep neither.
            overrides: config values: see :func:`onenet.train`.

        Returns:
            The metrics by name, such as ``bbox/AP``, in per cent.

        Raises:
            OneNetError: the detector is an exported file, or something given is wrong.
        """
        return importlib.import_module("onenet.api.runs").evaluate(
            self._own_files("evaluated"), data, output, overrides
        )

    def export(self, output: str | PathLike[str], **options: Any) -> Path:
        """Write the detector as one file, ``.onnx`` or ``.pt2``, once it agrees with the model.

        Args:
            output: the file.
            options: the flags of ``onenet export``, such as ``require_sizes=True``.

        Returns:
            The file.

        Raises:
            OneNetError: it cannot be exported, an option is wrong, or the file would differ.
        """
        return importlib.import_module("onenet.api.runs").export(
            self._own_files("exported"), output, options
        )

    def _own_files(self, what: str) -> ModelFiles:
        if self._files is None:
            raise CheckpointError(
                f"{self.weights} is an exported file, which cannot be {what}: load the checkpoint "
                "that it was made from"
            )
        return self._files


def list_images(images: Any) -> tuple[list[Any], bool]:
    """The images one by one, files as paths, and whether a single one was given.

    Raises:
        OneNetError: a path does not exist, or matches no image.
    """
    if isinstance(images, str | PathLike):
        paths = [path for path, _ in find_images([str(images)])]
        return paths, Path(images).expanduser().is_file()
    if isinstance(images, np.ndarray | Image.Image) or not isinstance(images, Iterable):
        return [images], True
    if hasattr(images, "detach"):  # a tensor, whose rows are no images
        return [images], True
    return [one for entry in images for one in list_images(entry)[0]], False


def to_array(image: Any, channels: str) -> np.ndarray:
    """One entry of :func:`list_images` as the predictors take it, (H, W, 3) uint8 RGB.

    What is neither a path nor a Pillow image is returned as it is: predictors say what is wrong.
    """
    if isinstance(image, Path):
        return read_image(str(image), "RGB")
    if isinstance(image, Image.Image):
        return np.asarray(image.convert("RGB"))
    if isinstance(image, np.ndarray) and image.ndim == 3 and channels == "BGR":
        return image[..., ::-1]
    return image
