"""Writing the shapes data set: drawn images with annotations in COCO's format."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
from tqdm import tqdm

from _shared.shapes import CLASSES, SPLITS, draw_image
from onenet.errors import DatasetError
from onenet.files import read_json

RECORD = "dataset.json"  # marks a folder of this module, with the arguments
GENERATOR = "make_shapes_dataset/1"  # raise the number when the same arguments draw other pixels

CC0 = "https://creativecommons.org/publicdomain/zero/1.0/"
LICENSE = {"id": 1, "name": "CC0 1.0", "url": CC0}
JPEG_OPTIONS = [cv2.IMWRITE_JPEG_QUALITY, 95]
JPEG_OPTIONS += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]


def write_split(output: Path, split: str, arguments: dict[str, int]) -> int:
    """Write the images and annotations of one split; returns its number of objects."""
    size, seed = arguments["size"], arguments["seed"]
    images, annotations = [], []
    (output / split).mkdir(parents=True, exist_ok=True)
    for index in tqdm(range(arguments[split]), desc=f"drawing {split}", unit="image", disable=None):
        image, shapes = draw_image(seed, split, index, size)
        name = f"{index:06d}.jpg"
        encoded = cv2.imencode(".jpg", image[..., ::-1], JPEG_OPTIONS)[1]
        (output / split / name).write_bytes(encoded.tobytes())
        images.append({"id": index, "file_name": name, "width": size, "height": size, "license": 1})
        for shape in shapes:
            annotations.append(
                {
                    "id": len(annotations) + 1,  # to pycocotools, 0 means "not matched"
                    "image_id": index,
                    "category_id": shape.label + 1,
                    "bbox": [float(v) for v in shape.box],
                    "area": float(shape.area),
                    "iscrowd": 0,
                }
            )
    content = {
        "info": {
            "description": f"Drawn shapes, {split} split",
            "version": GENERATOR,
            "arguments": arguments,
        },
        "licenses": [LICENSE],
        "categories": [
            {"id": k, "name": name, "supercategory": "shape"}
            for k, name in enumerate(CLASSES, start=1)
        ],
        "images": images,
        "annotations": annotations,
    }
    (output / "annotations").mkdir(exist_ok=True)
    (output / "annotations" / f"instances_{split}.json").write_text(
        json.dumps(content), encoding="utf-8"
    )
    return len(annotations)


def read_record(output: Path) -> dict | None:
    """The record in a folder, or None if the folder was not made here."""
    try:
        record = read_json(output / RECORD)
    except DatasetError:
        return None
    if not isinstance(record, dict) or not isinstance(record.get("arguments"), dict):
        return None
    ours = str(record.get("generator")).startswith(GENERATOR.split("/")[0])
    counted = all(type(record["arguments"].get(split)) is int for split in SPLITS)
    return record if ours and counted else None


def make_dataset(
    output: Path, *, train: int, val: int, size: int, seed: int, overwrite: bool = False
) -> bool:
    """Write the data set into ``output``, unless it is already there.

    Writes ``annotations/instances_{train,val}.json`` and the images ``{train,val}/000000.jpg`` and
    so on. Image i depends only on (seed, split, i, size), so a larger data set extends a smaller
    one. A data set made here with other arguments is replaced.

    Args:
        output: folder.
        train, val: number of images of each split.
        size: px, the side of the square images.
        seed: of the random choices.
        overwrite: draw again, and write into a folder that was not made here.

    Returns:
        Whether anything was drawn.

    Raises:
        FileExistsError: ``output`` holds other files and ``overwrite`` is false.
    """
    arguments = {"train": train, "val": val, "size": size, "seed": seed}
    record = {"generator": GENERATOR, "arguments": arguments, "complete": True}
    old = read_record(output)
    if old == record and not overwrite:
        return False
    if output.exists() and old is None and not overwrite:
        if not output.is_dir() or any(output.iterdir()):
            raise FileExistsError(
                f"{output} exists and was not made by this program: give another --output, or "
                "--overwrite to write into it"
            )
    output.mkdir(parents=True, exist_ok=True)
    # After an interruption the record says so, and the next run draws again.
    (output / RECORD).write_text(json.dumps({**record, "complete": False}) + "\n", encoding="utf-8")
    for split in SPLITS:
        (output / "annotations" / f"instances_{split}.json").unlink(missing_ok=True)
        for index in range(arguments[split], (old or record)["arguments"][split]):
            (output / split / f"{index:06d}.jpg").unlink(missing_ok=True)
    for split in SPLITS:
        write_split(output, split, arguments)
    (output / RECORD).write_text(json.dumps(record) + "\n", encoding="utf-8")
    return True
