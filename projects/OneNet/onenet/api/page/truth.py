"""Images with ground truth on the page, and which sample a model gives each object."""

from __future__ import annotations

from threading import Lock
from typing import Any

import numpy as np

from onenet.api.assignments import assign_all, build_onenet, to_input
from onenet.api.model_files import find_model
from onenet.api.overrides import to_opts
from onenet.assignment.explain import Assignment
from onenet.checkpoints.weights import load_weights
from onenet.data.dataset import CocoDetection
from onenet.data.sources import compare_classes, find_dataset
from onenet.detector import DenseDetector
from onenet.errors import DatasetError
from onenet.lightning.config import load_cfg

from .models import Models


class Truth:
    """A data set's images that have objects.

    Args:
        name: see :func:`~onenet.data.sources.find_dataset`.
        models: where the checkpoints are.

    Raises:
        DatasetError: its files are missing or wrong, or no image has an object.
    """

    def __init__(self, name: str, models: Models) -> None:
        self.dataset, self.models = CocoDetection(find_dataset(name)), models
        records = (self.dataset.record(index) for index in range(len(self.dataset)))
        self._numbers = [index for index, record in enumerate(records) if len(record.labels)]
        if not self._numbers:
            raise DatasetError(f"{self.dataset.source.json_file} has no image with objects")
        self._loaded: tuple[str, Any, DenseDetector] | None = None
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._numbers)

    @property
    def class_names(self) -> list[str]:
        """The name of each label."""
        return list(self.dataset.class_names)

    def image(self, number: int) -> np.ndarray:
        """An image, (H, W, 3) uint8 RGB.

        Args:
            number: from 1 to the length.
        """
        return self.dataset.read_image(self._record(number))

    def assign(self, checkpoint: str, number: int) -> Assignment:
        """The sample that a checkpoint's model gives each object of an image.

        Args:
            checkpoint: a name of :class:`~.models.Models`.
            number: of the image, from 1.

        Raises:
            OneNetError: the model cannot be loaded, has other classes, or assigns nothing by cost.
        """
        record = self._record(number)
        with self._lock:
            cfg, model = self._model(checkpoint)
            example = to_input(cfg, self.dataset.read_image(record), record.targets())
            return assign_all(cfg, model, [example])[0]

    def _record(self, number: int) -> Any:
        if not 1 <= number <= len(self):
            raise DatasetError(f"there is no image {number}: there are {len(self)}, from 1")
        return self.dataset.record(self._numbers[int(number) - 1])

    def _model(self, checkpoint: str) -> tuple[Any, DenseDetector]:
        if self._loaded is None or self._loaded[0] != checkpoint:
            self._loaded = None
            models = self.models
            if checkpoint not in models.checkpoints:
                raise DatasetError(f"{checkpoint} is not a checkpoint that the page offers")
            # Assignment is the same in both engines, and this one needs no Detectron2.
            opts = to_opts(models.overrides)
            files = find_model(checkpoint, models.config, "lightning", opts)
            with files.config_file() as file:
                cfg = load_cfg(file, files.all_opts())
            self.dataset.check_num_classes(cfg.MODEL.OneNet.NUM_CLASSES)
            model = build_onenet(cfg)
            extras = load_weights(
                model, cfg.MODEL.WEIGHTS, detector=True, class_names=self.class_names
            )
            compare_classes(
                checkpoint,
                extras.get("class_names", []),
                self.dataset.source.json_file,
                self.class_names,
            )
            self._loaded = checkpoint, cfg, model
        return self._loaded[1:]
