"""``ANNOTATIONS.json:IMAGE_FOLDER`` as a data set of Detectron2."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from onenet.data.annotations import read_annotations, sorted_categories
from onenet.data.coco_json import parse_coco_json, read_coco_json
from onenet.data.dataset import read_source
from onenet.data.image_files import (
    describe_respelled,
    find_files,
    refuse_missing,
    refuse_outside,
)
from onenet.data.sources import (
    KNOWN_DATASETS,
    ROOT_VARIABLE,
    DatasetSource,
    check_num_classes,
    find_dataset,
)
from onenet.errors import DatasetError

logger = logging.getLogger(__name__)
_SOURCES: dict[str, DatasetSource] = {}  # by name; what register_datasets has found


def register_datasets(names: Iterable[str]) -> None:
    """Register data sets that Detectron2 does not know yet.

    Args:
        names: see :func:`onenet.data.sources.find_dataset`.

    Raises:
        DatasetError: a name is neither registered nor found, or its files are missing.
    """
    for name in names:
        if name in DatasetCatalog.list():
            # Detectron2 knows COCO whether it is on this machine or not.
            if name in KNOWN_DATASETS and "://" not in os.environ.get(ROOT_VARIABLE, ""):
                _SOURCES[name] = find_dataset(name)
            continue
        source = _SOURCES[name] = find_dataset(name)
        DatasetCatalog.register(name, partial(load_records, source))
        MetadataCatalog.get(name).set(
            json_file=str(source.json_file),
            image_root=str(source.image_root),
            evaluator_type="coco",
        )


def is_ours(name: str) -> bool:
    """Whether a data set's files were found by :func:`register_datasets`, not by Detectron2."""
    return name in _SOURCES


def load_records(source: DatasetSource) -> list[dict[str, Any]]:
    """Detectron2's dicts of a COCO file's images, in the order of their ids; boxes only.

    Boxes that have no finite, positive size or lie outside their image are left out, and a warning
    counts them. A file without annotations is that of a test set (:func:`check_annotated`).

    Raises:
        DatasetError: the file is not COCO detection data (the message names the entry), or an
            image lies outside of the folder.
    """
    content, data = read_source(source, need_annotations=False)
    images = sorted(content["images"], key=lambda image: image["id"])
    found = find_files(source, (image["file_name"] for image in images))
    refuse_outside(source, found.outside)
    if found.respelled:
        logger.warning("%s: %s", source.json_file, describe_respelled(found))
    categories = sorted_categories(content)
    label_of = {category["id"]: label for label, category in enumerate(categories)}
    metadata = MetadataCatalog.get(source.name)
    metadata.thing_classes = [category["name"] for category in categories]
    metadata.thing_dataset_id_to_contiguous_id = label_of
    records = {
        image["id"]: {
            "file_name": os.path.join(source.image_root, file),
            "image_id": image["id"],
            "height": int(image["height"]),
            "width": int(image["width"]),
            "annotations": [],
        }
        for image, file in zip(images, found.files, strict=True)
    }
    for annotation, usable in zip(content["annotations"], data.usable.tolist(), strict=True):
        if not usable:
            continue
        records[annotation["image_id"]]["annotations"].append(
            {
                "bbox": annotation["bbox"],
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": label_of[annotation["category_id"]],
                "iscrowd": int(annotation.get("iscrowd", 0)),
            }
        )
    return list(records.values())


def class_names(name: str) -> list[str]:
    """The classes of a registered data set, by contiguous label; empty where it has no names.

    Raises:
        DatasetError: its COCO file is not what it should be.
    """
    metadata = MetadataCatalog.get(name)
    if not metadata.get("thing_classes"):
        if metadata.get("evaluator_type") == "coco" and metadata.get("json_file"):
            metadata.thing_classes = _summary(metadata.json_file).classes
        else:
            DatasetCatalog.get(name)  # may fill the metadata
    return list(metadata.get("thing_classes", ()))


def check_classes(names: Iterable[str], num_classes: int) -> None:
    """Compare the number of classes of data sets with the model's.

    Raises:
        DatasetError: they differ; gives both numbers and the override to type.
    """
    for name in names:
        if found := class_names(name):
            json_file = Path(MetadataCatalog.get(name).get("json_file", name))
            check_num_classes(json_file, found, num_classes)


def check_annotated(names: Iterable[str]) -> None:
    """Raise ``DatasetError`` if a data set to train on has no annotations.

    Only of data sets whose files :func:`register_datasets` found.
    """
    for name in names:
        if name in _SOURCES and not _summary(str(_SOURCES[name].json_file)).annotated:
            parse_coco_json(_SOURCES[name].json_file)  # raises the error


def check_images(
    names: Iterable[str], *, keep_empty: bool = True, skip_missing: bool = False
) -> None:
    """Check that the images of data sets are there, without opening them.

    Only of data sets whose files :func:`register_datasets` found.

    Args:
        keep_empty: images without objects are used, too.
        skip_missing: accept missing images as long as one is there.

    Raises:
        DatasetError: images are missing, or lie outside of their folder, or there are none.
    """
    for name in names:
        if name not in _SOURCES:
            continue
        source = _SOURCES[name]
        images = _summary(str(source.json_file)).images
        files = [file for file, has_objects in images if has_objects or keep_empty]
        if not files:
            what = "no images" if keep_empty else "no image with an object"
            raise DatasetError(f"{source.json_file}: this file has {what}.")
        found = find_files(source, files)
        refuse_outside(source, found.outside)
        refuse_missing(source, found.missing, len(files), allow_some=skip_missing)


@dataclass(frozen=True)
class _Summary:
    """What is known of a COCO file.

    Attributes:
        classes: by label.
        images: the file of each, and whether it has objects.
        annotated: whether the file has a list of annotations, which may be empty.
    """

    classes: list[str]
    images: list[tuple[str, bool]]
    annotated: bool


@cache
def _summary(json_file: str) -> _Summary:
    annotated = True
    try:
        content = read_coco_json(Path(json_file))
    except DatasetError:  # perhaps it has no annotations
        content = read_coco_json(Path(json_file), need_annotations=False)
        annotated = False
    data = read_annotations(content)
    taken = set(data.images[data.objects].tolist())
    images = [(image["file_name"], n in taken) for n, image in enumerate(content["images"])]
    return _Summary(data.class_names, images, annotated)
