"""From Detectron2's dataset dicts to inputs, with the original's augmentations."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from detectron2.config import configurable
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T

PRE_CROP_SIZES = [400, 500, 600]


class OneNetDatasetMapper:
    """Flip, then with probability ½ resize and crop, then resize the shortest edge.

    Args:
        is_train: augment, and give ``instances``.
        flip: augmentations before the crop.
        crop: augmentations of every other image; empty: none.
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
        augmentations = utils.build_augmentation(cfg, is_train)
        # Detectron2 puts the resize first and the flip, if any, behind it.
        resize, flip = augmentations[:1], augmentations[1:]
        crop = []
        if cfg.INPUT.CROP.ENABLED and is_train:
            crop = [
                T.ResizeShortestEdge(PRE_CROP_SIZES, sample_style="choice"),
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
        """The input of the model for an image of the data set; the dict given is not changed."""
        inputs = copy.deepcopy(dataset_dict)
        image = utils.read_image(inputs["file_name"], format=self.image_format)
        utils.check_image_size(inputs, image)
        crop = self.crop if self.crop and np.random.rand() < 0.5 else []
        aug_input = T.AugInput(image)
        transforms = T.AugmentationList([*self.flip, *crop, *self.resize])(aug_input)
        image = aug_input.image
        inputs["image"] = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        annotations = inputs.pop("annotations", None)
        if self.is_train and annotations is not None:
            size = image.shape[:2]
            boxes = [
                utils.transform_instance_annotations(
                    {k: v for k, v in a.items() if k not in ("segmentation", "keypoints")},
                    transforms,
                    size,
                )
                for a in annotations
                if not a.get("iscrowd", 0)
            ]
            inputs["instances"] = utils.filter_empty_instances(
                utils.annotations_to_instances(boxes, size)
            )
        return inputs
