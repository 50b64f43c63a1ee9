"""Finding data sets in COCO's JSON format by name."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from onenet.errors import DatasetError, did_you_mean

logger = logging.getLogger(__name__)
ROOT_VARIABLE = "DETECTRON2_DATASETS"

# Annotation file and image folder, relative to $DETECTRON2_DATASETS or ./datasets.
KNOWN_DATASETS = {
    "coco_2017_train": ("coco/annotations/instances_train2017.json", "coco/train2017"),
    "coco_2017_val": ("coco/annotations/instances_val2017.json", "coco/val2017"),
    "coco_2017_test-dev": ("coco/annotations/image_info_test-dev2017.json", "coco/test2017"),
    "CrowdHuman_train": ("crowdhuman/annotations/train.json", "crowdhuman/CrowdHuman_train"),
    "CrowdHuman_val": ("crowdhuman/annotations/val.json", "crowdhuman/CrowdHuman_val"),
}


# Control characters and lone surrogates, which UTF-8 cannot encode.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def is_line(value: object) -> bool:
    """Whether a value is text that any terminal and file can hold: no control characters."""
    return isinstance(value, str) and _UNPRINTABLE.search(value) is None


def shortened(values: Sequence[object], limit: int = 6) -> str:
    """The first ``limit`` values and, if there are more, the last, for an error message."""
    shown = ", ".join(map(str, values[:limit]))
    return shown if len(values) <= limit else f"{shown}, … {values[-1]}"


@dataclass(frozen=True)
class DatasetSource:
    """The files of a data set.

    Attributes:
        name: as written in ``DATASETS.TRAIN`` or ``DATASETS.TEST``.
        json_file: annotations in COCO's format.
        image_root: the folder that the JSON's ``file_name`` entries are relative to.
    """

    name: str
    json_file: Path
    image_root: Path


def find_dataset(name: str) -> DatasetSource:
    """Find the files of an entry of ``DATASETS.TRAIN`` or ``DATASETS.TEST``.

    Args:
        name: a key of ``KNOWN_DATASETS``, or ``ANNOTATIONS.json:IMAGE_FOLDER``.

    Raises:
        DatasetError: the name is neither, or the annotation file or image folder is missing.
    """
    if name in KNOWN_DATASETS:
        root = Path(os.path.expanduser(os.environ.get(ROOT_VARIABLE) or "datasets"))
        json_file, image_root = (root / part for part in KNOWN_DATASETS[name])
        advice = f"put the data there, or set {ROOT_VARIABLE} to the folder that holds it."
        if ROOT_VARIABLE not in os.environ:
            advice = f"{ROOT_VARIABLE} is not set, so ./datasets is searched; {advice}"
    else:
        split = name.lower().rfind(".json:")
        if split < 0 or split + len(".json:") == len(name):
            _fail_unknown(name)
        json_file = Path(os.path.expanduser(name[: split + len(".json")]))
        image_root = Path(os.path.expanduser(name[split + len(".json:") :]))
        advice = "write your own data as ANNOTATIONS.json:IMAGE_FOLDER."
        if not is_line(name):  # quotes within a config make a tab of \\t
            advice = (
                "a backslash in quotes made a control character: write C:/train, not C:\\train."
            )
    if not os.path.isfile(json_file):  # Path.is_file raises if the name is too long
        raise DatasetError(
            f"Data set {name!r}: no annotation file {str(json_file)!r} "
            f"(looked for {str(json_file.absolute())!r}); {advice}"
        )
    if not os.path.isdir(image_root):
        raise DatasetError(
            f"Data set {name!r}: no image folder {str(image_root)!r} "
            f"(looked for {str(image_root.absolute())!r}); {advice}"
        )
    return DatasetSource(name, json_file, image_root)


def _fail_unknown(name: str) -> NoReturn:
    hint = did_you_mean(name, KNOWN_DATASETS) or "."
    if name.lower().endswith((".json", ".json:")):
        hint = f". The image folder is missing: {name.rstrip(':')}:IMAGE_FOLDER."
    raise DatasetError(
        f"Unknown data set {name!r}{hint} Known names are {', '.join(KNOWN_DATASETS)} "
        f"(under ${ROOT_VARIABLE} or ./datasets); write your own data as "
        f"ANNOTATIONS.json:IMAGE_FOLDER."
    )


def check_num_classes(json_file: Path, class_names: Sequence[str], num_classes: int) -> None:
    """Raise ``DatasetError`` unless an annotation file has as many classes as the model."""
    found = len(class_names)
    if found != num_classes:
        classes = "1 class" if found == 1 else f"{found} classes"
        raise DatasetError(
            f"{json_file.name} has {classes} ({shortened(class_names)}), "
            f"but MODEL.OneNet.NUM_CLASSES is {num_classes}. "
            f"Add to the command: MODEL.OneNet.NUM_CLASSES {found}"
        )


def check_same_classes(data_sets: Iterable[tuple[object, Sequence[str]]]) -> None:
    """Raise ``DatasetError`` unless data sets that are trained on together have the same classes.

    Args:
        data_sets: the name of each, and its classes by label.
    """
    (first, expected), *others = data_sets
    for other, classes in others:
        if classes != expected:
            raise DatasetError(
                "The data sets of DATASETS.TRAIN must have the same classes: "
                f"{first} has {expected}, {other} has {classes}."
            )


def compare_classes(one: object, ours: Sequence[str], other: object, theirs: Sequence[str]) -> None:
    """Log a warning if two files name their classes differently, such as weights and a test set.

    Args:
        one, other: the files.
        ours, theirs: their class names by label; empty if unknown.
    """
    for number, (our, their) in enumerate(zip(ours, theirs, strict=False), start=1):
        if our != their:
            logger.warning(
                "%s and %s name their classes differently: in the order of category ids, class %d "
                "is %s in one and %s in the other. Labels are matched by this order, not by name",
                one,
                other,
                number,
                our,
                their,
            )
            return
