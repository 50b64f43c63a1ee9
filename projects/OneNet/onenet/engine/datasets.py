"""Data sets in COCO's JSON format: finding them by name, and reading them."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np

from onenet.engine.coco_json import DatasetError, read_coco_json, shortened

logger = logging.getLogger(__name__)

ROOT_VARIABLE = "DETECTRON2_DATASETS"

# Annotation file and image folder, relative to $DETECTRON2_DATASETS or ./datasets.
KNOWN_DATASETS = {
    "coco_2017_train": ("coco/annotations/instances_train2017.json", "coco/train2017"),
    "coco_2017_val": ("coco/annotations/instances_val2017.json", "coco/val2017"),
    "CrowdHuman_train": ("crowdhuman/annotations/train.json", "crowdhuman/CrowdHuman_train"),
    "CrowdHuman_val": ("crowdhuman/annotations/val.json", "crowdhuman/CrowdHuman_val"),
}


@dataclass(frozen=True)
class DatasetSource:
    """Where a data set lies.

    Attributes:
        name: as written in ``DATASETS.TRAIN`` or ``DATASETS.TEST``.
        json_file: annotations in COCO's format.
        image_root: the folder that the JSON's ``file_name`` entries are relative to.
    """

    name: str
    json_file: Path
    image_root: Path


def find_dataset(name: str) -> DatasetSource:
    """The files behind an entry of ``DATASETS.TRAIN`` or ``DATASETS.TEST``.

    Args:
        name: a key of ``KNOWN_DATASETS``, or ``ANNOTATIONS.json:IMAGE_FOLDER``.

    Raises:
        DatasetError: the name is neither, or a file or folder is missing.
    """
    if name in KNOWN_DATASETS:
        root = Path(os.environ.get(ROOT_VARIABLE) or "datasets").expanduser()
        json_file, image_root = (root / part for part in KNOWN_DATASETS[name])
        advice = f"put the data there, or set {ROOT_VARIABLE} to the folder that holds it."
        if ROOT_VARIABLE not in os.environ:
            advice = f"{ROOT_VARIABLE} is not set, so ./datasets was searched; {advice}"
    else:
        split = name.lower().rfind(".json:")
        if split < 0 or split + len(".json:") == len(name):
            _fail_unknown(name)
        json_file = Path(name[: split + len(".json")]).expanduser()
        image_root = Path(name[split + len(".json:") :]).expanduser()
        advice = "an entry of your own is written ANNOTATIONS.json:IMAGE_FOLDER."
    if not json_file.is_file():
        raise DatasetError(
            f"Data set {name!r}: no annotation file {str(json_file)!r} "
            f"(looked for {str(json_file.absolute())!r}); {advice}"
        )
    if not image_root.is_dir():
        raise DatasetError(
            f"Data set {name!r}: no image folder {str(image_root)!r} "
            f"(looked for {str(image_root.absolute())!r}); {advice}"
        )
    return DatasetSource(name, json_file, image_root)


def _fail_unknown(name: str) -> NoReturn:
    near = difflib.get_close_matches(name, KNOWN_DATASETS, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    if name.lower().endswith((".json", ".json:")):
        hint = f" The image folder is missing: {name.rstrip(':')}:IMAGE_FOLDER."
    raise DatasetError(
        f"Unknown data set {name!r}.{hint} Known names are {', '.join(KNOWN_DATASETS)} "
        f"(under ${ROOT_VARIABLE} or ./datasets); data of your own is given as "
        f"ANNOTATIONS.json:IMAGE_FOLDER."
    )


@dataclass(frozen=True)
class ImageRecord:
    """One image of a data set and its objects, as annotated.

    Attributes:
        image_id: the JSON's id.
        file_name: full path of the image.
        height, width: px, from the JSON.
        boxes: (M, 4) float32 xyxy px; neither clipped to the image nor resized.
        labels: (M,) int64, contiguous: indices into ``CocoDetection.class_names``.
    """

    image_id: int
    file_name: str
    height: int
    width: int
    boxes: np.ndarray
    labels: np.ndarray


class CocoDetection:
    """The images and boxes of one COCO JSON, ordered by image id.

    Crowd regions are left out, as are boxes without a finite, positive size (one warning counts
    them). Everything per image lies in flat arrays: small, and shared with forked workers.

    Args:
        source: the files; see ``find_dataset``.
        keep_empty: keep images without objects.

    Attributes:
        source: as given.
        class_names: names by contiguous label, ordered by category id.
        category_ids: the JSON's category id of each label.
        image_ids: (n,) int64.
        sizes: (n, 2) int64, height and width of each image in px.

    Raises:
        DatasetError: the file is not COCO detection data (the message names the entry), or no
            image is left.
    """

    def __init__(self, source: DatasetSource, *, keep_empty: bool = True) -> None:
        self.source = source
        coco = read_coco_json(source.json_file)
        self.category_ids: list[int] = sorted(coco.cats)
        self.class_names: list[str] = [coco.cats[i]["name"] for i in self.category_ids]
        label_of = {category: label for label, category in enumerate(self.category_ids)}

        ids: list[int] = []
        sizes: list[tuple[int, int]] = []
        names: list[bytes] = []
        boxes: list[np.ndarray] = []
        labels: list[int] = []
        ends: list[int] = []
        broken = 0
        for image_id in sorted(coco.imgs):
            image = coco.imgs[image_id]
            before = len(boxes)
            for annotation in coco.imgToAnns.get(image_id, ()):
                if annotation.get("iscrowd", 0):
                    continue
                box = _xyxy(annotation["bbox"])
                if box is None:
                    broken += 1
                    continue
                boxes.append(box)
                labels.append(label_of[annotation["category_id"]])
            if len(boxes) == before and not keep_empty:
                continue
            ids.append(image_id)
            sizes.append((int(image["height"]), int(image["width"])))
            names.append(image["file_name"].encode(errors="surrogatepass"))
            ends.append(len(boxes))
        if broken:
            logger.warning(
                "%s: left out %d of %d annotations, whose boxes have no finite, positive size",
                source.json_file,
                broken,
                len(coco.anns),
            )
        if not ids:
            what = "no images" if keep_empty else "no image with an object"
            raise DatasetError(f"{source.json_file}: there is {what} in this file.")

        self.image_ids = np.array(ids, dtype=np.int64)
        self.sizes = np.array(sizes, dtype=np.int64)
        self._boxes = np.array(boxes, dtype=np.float32).reshape(-1, 4)
        self._labels = np.array(labels, dtype=np.int64)
        self._offsets = np.array([0, *ends], dtype=np.int64)
        self._names = np.frombuffer(b"".join(names), dtype=np.uint8)
        self._name_offsets = np.cumsum([0, *map(len, names)], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.image_ids)

    def record(self, index: int) -> ImageRecord:
        """The image at a position in [0, len(self)); its arrays are the caller's own."""
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)} in {self.source.json_file}")
        objects = slice(self._offsets[index], self._offsets[index + 1])
        name = self._names[self._name_offsets[index] : self._name_offsets[index + 1]].tobytes()
        height, width = self.sizes[index].tolist()
        return ImageRecord(
            image_id=int(self.image_ids[index]),
            file_name=os.path.join(self.source.image_root, name.decode(errors="surrogatepass")),
            height=height,
            width=width,
            boxes=self._boxes[objects].copy(),
            labels=self._labels[objects].copy(),
        )


def check_num_classes(dataset: CocoDetection, num_classes: int) -> None:
    """Raise ``DatasetError`` unless the data set has as many classes as the model."""
    found = len(dataset.class_names)
    if found != num_classes:
        classes = "1 class" if found == 1 else f"{found} classes"
        raise DatasetError(
            f"{dataset.source.json_file.name} has {classes} ({shortened(dataset.class_names)}), "
            f"but MODEL.OneNet.NUM_CLASSES is {num_classes}. "
            f"Add to the command: MODEL.OneNet.NUM_CLASSES {found}"
        )


def _xyxy(bbox: Sequence[float]) -> np.ndarray | None:
    """(4,) float32 xyxy of a COCO box, or None where it has no finite, positive size."""
    with np.errstate(over="ignore"):  # a number beyond float32 becomes inf, which is left out
        box = np.array(bbox, dtype=np.float64).astype(np.float32)
        box[2:] += box[:2]
    width, height = bbox[2:]
    return box if width > 0 and height > 0 and np.isfinite(box).all() else None
