"""From Detectron2's dataset dicts to inputs, with the original's augmentations."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from detectron2.config import configurable
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

from onenet.data.images import decode_image, reading_errors
from onenet.data.transforms import CROP_SHARE, PRE_CROP_SIZES
from onenet.errors import ConfigError, UnreadableImageError


class ResizeShortestEdge(T.ResizeShortestEdge):
    """Detectron2's, which fails on an image so thin that a side would be rounded to 0 px."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        resize = super().get_transform(image)
        if isinstance(resize, T.ResizeTransform):
            resize.new_h, resize.new_w = max(resize.new_h, 1), max(resize.new_w, 1)
        return resize


class OneNetDatasetMapper:
    """Flip, then for half of the images resize and crop, then resize the shortest edge.

    Args:
        is_train: augment, and give ``instances``.
        flip: augmentations before the crop.
        crop: augmentations of a share of the images, ``CROP_SHARE``; empty: none.
        resize: augmentations at the end.
        image_format: of ``image``, "RGB" or "BGR".
    """

    @configurable
    def __init__(
        self,
        *,
        is_train: bool,
        flip: list[T.Augmentation],
        crop: list[T.Augmentation],
        resize: list[T.Augmentation],
        image_format: str,
    ) -> None:
        self.is_train = is_train
        self.flip, self.crop, self.resize = flip, crop, resize
        self.image_format = image_format

    @classmethod
    def from_config(cls, cfg: Any, is_train: bool = True) -> dict[str, Any]:
        if is_train and cfg.INPUT.AUGMENTATIONS:
            raise ConfigError(
                "INPUT.AUGMENTATIONS needs onenet.d2.loader.build_train_loader(cfg): the mapper "
                "alone knows neither the iteration nor other images"
            )
        augmentations = utils.build_augmentation(cfg, is_train)
        # Detectron2 puts the resize first, then the flip if there is one.
        theirs, *flip = augmentations
        style = "range" if theirs.is_range else "choice"
        resize = [ResizeShortestEdge(theirs.short_edge_length, theirs.max_size, style)]
        crop = []
        if cfg.INPUT.CROP.ENABLED and is_train:
            crop = [
                T.ResizeShortestEdge(list(PRE_CROP_SIZES), sample_style="choice"),
                T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE),
            ]
        return {
            "is_train": is_train,
            "flip": flip,
            "crop": crop,
            "resize": resize,
            "image_format": cfg.INPUT.FORMAT,
        }

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """The model's input for an image of the data set; the given dict stays unchanged.

        Crowd regions and boxes without a finite, positive size are left out.

        Raises:
            UnreadableImageError: the image is missing, cannot be decoded, or has another size than
                the data set says.
        """
        inputs = copy.deepcopy(dataset_dict)
        return self.map(inputs, self.read(inputs))

    def map(self, inputs: dict[str, Any], image: np.ndarray) -> dict[str, Any]:
        """A dict of the data set as the model's input, in place; as :meth:`__call__` gives it.

        Args:
            image: as read, (H, W, 3) uint8 RGB.
        """
        if self.image_format == "BGR":
            image = image[:, :, ::-1]
        crop = self.crop if self.crop and np.random.rand() < CROP_SHARE else []
        aug_input = T.AugInput(image)
        transforms = T.AugmentationList([*self.flip, *crop, *self.resize])(aug_input)
        image = aug_input.image
        inputs["image"] = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        objects = objects_of(inputs)
        if inputs.pop("annotations", None) is not None and self.is_train:
            size = image.shape[:2]
            boxes = [
                utils.transform_instance_annotations(
                    {k: v for k, v in a.items() if k not in ("segmentation", "keypoints")},
                    transforms,
                    size,
                )
                for a in objects
            ]
            inputs["instances"] = utils.filter_empty_instances(
                utils.annotations_to_instances(boxes, size)
            )
        return inputs

    def read(self, dataset_dict: dict[str, Any]) -> np.ndarray:
        """The image, (H, W, 3) uint8 RGB; adds its size to the dict if that lacks it.

        Raises:
            UnreadableImageError: see :meth:`__call__`.
        """
        file = dataset_dict["file_name"]
        with reading_errors(file), PathManager.open(file, "rb") as stream:
            image = decode_image(stream, "RGB")
        try:
            utils.check_image_size(dataset_dict, image)
        except utils.SizeMismatchError as error:
            raise UnreadableImageError(str(error)) from error
        return image


def objects_of(dataset_dict: dict[str, Any]) -> list[dict[str, Any]]:
    """The annotations to train on: neither crowd regions nor boxes without a size."""
    annotations = dataset_dict.get("annotations") or []
    return [a for a in annotations if not a.get("iscrowd", 0) and _has_size(a)]


def _has_size(annotation: dict[str, Any]) -> bool:
    """Whether a box has a finite, positive size; Detectron2 would flip a negative one."""
    box = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
    x1, y1, x2, y2 = box
    return bool(np.isfinite(box).all() and x2 > x1 and y2 > y1)
