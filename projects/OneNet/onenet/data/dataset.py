"""The images and boxes of a COCO JSON, stored compactly enough for many loader workers."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from onenet.errors import DatasetError
from onenet.structures import Targets

from .annotations import Annotations, read_annotations, sorted_categories
from .checks import Verdict, check_objects
from .coco_json import read_coco_json
from .image_files import describe_respelled, find_files, refuse_missing, refuse_outside
from .images import check_image_size, read_image
from .sources import DatasetSource, check_num_classes

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

    def targets(self) -> Targets:
        """The objects as a model takes them, in px of the original image; shares the arrays."""
        size = (self.height, self.width)
        return Targets(torch.from_numpy(self.boxes), torch.from_numpy(self.labels), size)


def read_source(
    source: DatasetSource, *, need_annotations: bool = True
) -> tuple[dict[str, Any], Annotations]:
    """The content of a data set's JSON, and its objects; warns of objects that look wrong.

    Args:
        need_annotations: see :func:`~.coco_json.parse_coco_json`.

    Raises:
        DatasetError: the file is not COCO detection data; names the entry.
    """
    content = read_coco_json(source.json_file, need_annotations=need_annotations)
    data = read_annotations(content)
    for finding in check_objects(content, data):
        if finding.verdict in (Verdict.DROPPED, Verdict.DOUBTFUL):
            logger.warning("%s: %s", source.json_file, finding)
    return content, data


def spread_evenly(count: int, size: int) -> list[int]:
    """``count`` ascending indices spread evenly over [0, size), both ends included.

    All indices if there are fewer than ``count``.
    """
    return torch.linspace(0, size - 1, min(count, size)).long().tolist()


class CocoDetection:
    """The images and boxes of one COCO JSON, ordered by image id.

    Leaves out crowd regions, and boxes that have no finite, positive size or lie outside their
    image. Warnings count what is dropped and what looks wrong. Data per image lies in flat arrays,
    which are small and which forked workers share.

    Args:
        source: the files; see ``find_dataset``.
        keep_empty: keep images without objects.
        need_annotations: refuse a file without ``annotations``; testing needs none.

    Attributes:
        source: as given.
        class_names: name of each contiguous label, ordered by category id.
        category_ids: the JSON's category id of each label.
        image_ids: (B,) int64, ids of the data set's B images.
        sizes: (B, 2) int64, height and width of each image in px.
        shown: (2, P) int64, each pair of an image's position and the label of a class that it
            shows, once. Crowd regions and what is left out count here, as in Detectron2.

    Raises:
        DatasetError: the file is not COCO detection data (the message names the entry), an image
            lies outside the image folder, or no image is left.
    """

    def __init__(
        self, source: DatasetSource, *, keep_empty: bool = True, need_annotations: bool = True
    ) -> None:
        self.source = source
        content, data = read_source(source, need_annotations=need_annotations)
        self.category_ids: list[int] = [category["id"] for category in sorted_categories(content)]
        self.class_names = data.class_names

        objects = data.at(data.objects)
        counts = np.bincount(objects.images, minlength=len(data.sizes))
        image_ids = np.array([image["id"] for image in content["images"]], dtype=np.int64)
        order = np.argsort(image_ids)
        kept = order if keep_empty else order[counts[order] > 0]
        if len(kept) == 0:
            what = "no images" if keep_empty else "no image with an object"
            raise DatasetError(f"{source.json_file}: this file has {what}.")
        position = np.full(len(order), -1)
        position[kept] = np.arange(len(kept))
        shown = np.stack([position[data.images], data.labels])
        self.shown = np.unique(shown[:, shown[0] >= 0], axis=1)
        rank = np.argsort(order)[objects.images]
        objects = objects.at(np.argsort(rank, kind="stable"))

        self.image_ids = image_ids[kept]
        self.sizes = data.sizes[kept, ::-1].astype(np.int64)
        self._boxes = objects.xyxy
        self._labels = objects.labels
        self._offsets = np.concatenate(([0], np.cumsum(counts[kept])))
        found = find_files(source, (content["images"][i]["file_name"] for i in kept))
        refuse_outside(source, found.outside)
        if found.respelled:
            logger.warning("%s: %s", source.json_file, describe_respelled(found))
        self._missing = found.missing
        encoded = [name.encode(errors="surrogatepass") for name in found.files]
        self._names = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        self._name_offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def num_objects(self) -> int:
        """How many objects the images have."""
        return len(self._labels)

    def check_num_classes(self, num_classes: int) -> None:
        """Raise ``DatasetError`` unless the data set has as many classes as the model."""
        check_num_classes(self.source.json_file, self.class_names, num_classes)

    def check_images(self, *, skip_missing: bool = False) -> None:
        """Raise ``DatasetError`` if images are missing.

        Args:
            skip_missing: accept missing images as long as one is there.
        """
        refuse_missing(self.source, self._missing, len(self), allow_some=skip_missing)

    def record(self, index: int) -> ImageRecord:
        """The image at a position in [0, len(self)); the caller may modify its arrays.

        Raises:
            IndexError: no such position.
        """
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

    @property
    def files(self) -> dict[int, Path]:
        """The full path of each image, by image id."""
        records = map(self.record, range(len(self)))
        return {record.image_id: Path(record.file_name) for record in records}

    def read_image(self, record: ImageRecord, image_format: str = "RGB") -> np.ndarray:
        """Read the pixels of a record, (H, W, 3) uint8, upright.

        Args:
            image_format: order of the channels, "RGB" or "BGR".

        Raises:
            UnreadableImageError: the image is missing, cannot be decoded, or has another size than
                the JSON says.
        """
        image = read_image(record.file_name, image_format)
        check_image_size(
            record.file_name,
            image,
            record.height,
            record.width,
            self.source.json_file,
            record.image_id,
        )
        return image
