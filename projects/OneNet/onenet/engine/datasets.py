"""The images and boxes of a COCO JSON, small enough for many workers."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools.coco import COCO

from onenet.coco_json import read_coco_json
from onenet.datasets import DatasetError, DatasetSource, check_num_classes

logger = logging.getLogger(__name__)


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
        coco = COCO()
        coco.dataset = read_coco_json(source.json_file)
        with contextlib.redirect_stdout(io.StringIO()):
            coco.createIndex()
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

    def check_num_classes(self, num_classes: int) -> None:
        """Raise ``DatasetError`` unless the data set has as many classes as the model."""
        check_num_classes(self.source.json_file, self.class_names, num_classes)

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


def _xyxy(bbox: Sequence[float]) -> np.ndarray | None:
    """(4,) float32 xyxy of a COCO box, or None where it has no finite, positive size."""
    with np.errstate(over="ignore"):  # a number beyond float32 becomes inf, which is left out
        box = np.array(bbox, dtype=np.float64).astype(np.float32)
        box[2:] += box[:2]
    width, height = bbox[2:]
    return box if width > 0 and height > 0 and np.isfinite(box).all() else None
