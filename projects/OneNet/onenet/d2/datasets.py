"""``ANNOTATIONS.json:IMAGE_FOLDER`` as a data set of Detectron2."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from ..coco_json import read_coco_json
from ..datasets import (
    KNOWN_DATASETS,
    ROOT_VARIABLE,
    DatasetError,
    check_num_classes,
    find_dataset,
)


def register_datasets(names: Iterable[str]) -> None:
    """Register the names that Detectron2 does not know yet.

    Args:
        names: see :func:`onenet.datasets.find_dataset`.

    Raises:
        DatasetError: a name that is neither registered nor can be found, or has no files.
    """
    for name in names:
        if name in DatasetCatalog.list():
            # Detectron2 knows COCO whether it is on this machine or not.
            if name in KNOWN_DATASETS and "://" not in os.environ.get(ROOT_VARIABLE, ""):
                find_dataset(name)
            continue
        source = find_dataset(name)
        files = (str(source.json_file), str(source.image_root))
        DatasetCatalog.register(name, partial(load_coco_json, *files, name))
        MetadataCatalog.get(name).set(
            json_file=files[0], image_root=files[1], evaluator_type="coco"
        )


def class_names(name: str) -> list[str]:
    """The classes of a registered data set, by contiguous label; empty where it has no names.

    Raises:
        DatasetError: its COCO file is not what it should be.
    """
    metadata = MetadataCatalog.get(name)
    if not metadata.get("thing_classes"):
        if metadata.get("evaluator_type") == "coco" and metadata.get("json_file"):
            categories = read_coco_json(Path(metadata.json_file))["categories"]
            metadata.thing_classes = [c["name"] for c in sorted(categories, key=lambda c: c["id"])]
        else:
            DatasetCatalog.get(name)  # may fill the metadata
    return list(metadata.get("thing_classes", ()))


def check_classes(names: Iterable[str], num_classes: int) -> None:
    """Compare the data sets' numbers of classes with the model's.

    Raises:
        DatasetError: they differ; gives both and the override to type.
    """
    for name in names:
        if found := class_names(name):
            json_file = Path(MetadataCatalog.get(name).get("json_file", name))
            check_num_classes(json_file, found, num_classes)


def check_same_classes(names: Iterable[str]) -> None:
    """Raise ``DatasetError`` unless data sets that are trained on together agree in classes."""
    first, *others = names
    for other in others:
        if class_names(other) != class_names(first):
            raise DatasetError(
                "The data sets of DATASETS.TRAIN must have the same classes: "
                f"{first} has {class_names(first)}, {other} has {class_names(other)}."
            )
