"""A tiny CrowdHuman: drawn crowds in its own format, as its users download it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from helpers.project import load_script

SIZE = (96, 64)  # width, height in px


def person(box: list[float], *, tag: str = "person", **extra: int) -> dict[str, Any]:
    """An entry of ``gtboxes``; ``extra`` holds ``ignore`` and the like."""
    visible = [int(v) for v in box]
    return {"tag": tag, "fbox": box, "vbox": visible, "hbox": visible, "extra": extra}


def write_odgt(file: Path, records: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return file


def make(folder: Path) -> Path:
    """4 training and 3 validation images with their COCO files, as in KNOWN_DATASETS."""
    tool = load_script("tools/convert_to_coco.py")
    rng = np.random.default_rng(0)
    root = folder / "crowdhuman"
    for split, count in (("train", 4), ("val", 3)):
        images = root / f"CrowdHuman_{split}"
        images.mkdir(parents=True)
        records = []
        for index in range(count):
            pixels = rng.integers(0, 90, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
            people = []
            for x in range(-6, 96, 16):  # the first and the last are cut off by the image
                y, height = int(rng.integers(5, 20)), int(rng.integers(20, 60))
                pixels[y : y + height, max(0, x) : x + 12] = rng.integers(120, 255, 3)
                people.append(person([x, y, 12, height], ignore=int(x == 42)))
            people.append(person([70, 0, 20, 10], tag="mask", ignore=1))
            Image.fromarray(pixels).save(images / f"{split},{index}.jpg")
            records.append({"ID": f"{split},{index}", "gtboxes": people})
        odgt = write_odgt(root / f"annotation_{split}.odgt", records)
        tool.main(
            ["crowdhuman", "--annotations", str(odgt), "--images", str(images)]
            + ["--output", str(root / "annotations" / f"{split}.json")]
        )
    return folder


# Overrides that make the two configs run within seconds on a CPU.
SMALL = [
    "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "",
    "MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64",
    "MODEL.FPN.OUT_CHANNELS", "32", "MODEL.OneNet.CONV_CHANNELS", "64",
    "MODEL.OneNet.NUM_CONV", "1",
    "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64",
    "DATALOADER.NUM_WORKERS", "0", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "2",
]  # fmt: skip
