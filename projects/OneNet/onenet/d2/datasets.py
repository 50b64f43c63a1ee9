"""``ANNOTATIONS.json:IMAGE_FOLDER`` as a data set of Detectron2."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from ..datasets import check_num_classes, find_dataset


def register_datasets(names: Iterable[str]) -> None:
    """Register the names that Detectron2 does not know yet.

    Args:
        names: see :func:`onenet.datasets.find_dataset`.

    Raises:
        DatasetError: a name that is neither registered nor can be found.
    """
    for name in names:
        if name in DatasetCatalog.list():
            continue
        source = find_dataset(name)
        files = (str(source.json_file), str(source.image_root))
        DatasetCatalog.register(name, partial(load_coco_json, *files, name))
        MetadataCatalog.get(name).set(
            json_file=files[0], image_root=files[1], evaluator_type="coco"
        )


def check_classes(names: Iterable[str], num_classes: int) -> None:
    """Read the data sets and compare their numbers of classes with the model's.

    Raises:
        DatasetError: they differ; gives both and the override to type.
    """
    for name in names:
        metadata = MetadataCatalog.get(name)
        if not hasattr(metadata, "thing_classes"):
            DatasetCatalog.get(name)  # fills the metadata from the JSON
        if hasattr(metadata, "thing_classes"):
            json_file = Path(getattr(metadata, "json_file", name))
            check_num_classes(json_file, metadata.thing_classes, num_classes)
