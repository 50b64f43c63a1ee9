"""What evaluation compares detections with: the boxes that the loaders take, and no others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onenet.data.annotations import read_annotations
from onenet.data.coco_json import read_coco_json


def read_truth(json_file: Path) -> dict[str, Any]:
    """The ground truth of a test set's COCO file; see :func:`counted`.

    A file without annotations is that of a set without objects.

    Raises:
        DatasetError: the file is not COCO data; names the entry.
    """
    return counted(read_coco_json(json_file, need_annotations=False))


def counted(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a COCO file without the boxes that loaders leave out, crowd or not.

    :attr:`~onenet.data.annotations.Annotations.usable` decides for both: what is left out is no
    object to be found, and hides no detection.

    Args:
        content: without problems (:func:`~onenet.data.coco_json.read_coco_json`); not modified.
    """
    usable = read_annotations(dict(content)).usable
    pairs = zip(content["annotations"], usable.tolist(), strict=True)
    return {**content, "annotations": [annotation for annotation, good in pairs if good]}


def has_objects(truth: Mapping[str, Any]) -> bool:
    """Whether there is anything to find."""
    return any(not annotation.get("iscrowd", 0) for annotation in truth["annotations"])
