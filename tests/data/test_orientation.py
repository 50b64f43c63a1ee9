"""Images of every format are read upright, once, and their size is that of the upright image."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.project import load_script
from helpers.transform_script import save
from PIL import Image, features
from PIL.PngImagePlugin import PngInfo

from onenet.data.dataset import CocoDetection
from onenet.data.images import image_size, read_image
from onenet.data.sources import find_dataset
from onenet.data.transforms import TestTransform, TrainTransform
from onenet.lightning.datasets import TestDataset, TrainDataset
from onenet.lightning.sampler import Place

# By EXIF's orientation: the stored pixels, made upright.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda a: np.rot90(a),
}
SUFFIXES = [
    ".tif", ".png", ".jpg", ".webp",
    pytest.param(".avif", marks=pytest.mark.skipif(not features.check("avif"), reason="no AVIF")),
]  # fmt: skip


def stored() -> np.ndarray:
    """(24, 40, 3): dark, with a bright rectangle whose place tells every turn from the others."""
    pixels = np.zeros((24, 40, 3), np.uint8)
    pixels[2:8, 4:20] = 255
    return pixels


def packet(orientation: int) -> bytes:
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
        'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description '
        f'xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="{orientation}"/>'
        "</rdf:RDF></x:xmpmeta>"
    ).encode()


def save_with_xmp(path: Path, pixels: np.ndarray, orientation: int) -> str:
    options = {"xmp": packet(orientation)}
    if path.suffix == ".tif":
        options = {"tiffinfo": {700: packet(orientation)}}
    elif path.suffix == ".png":
        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", packet(orientation).decode())
        options = {"pnginfo": info}
    Image.fromarray(pixels).save(path, **options)
    return str(path)


def check(path: str, orientation: int) -> None:
    expected = UPRIGHT[orientation](stored())
    pixels = read_image(path)
    assert pixels.shape == expected.shape == (*image_size(path), 3)
    assert ((pixels > 128) == (expected > 128)).all()


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_by_exif(tmp_path, suffix, orientation):
    check(save(tmp_path / f"a{suffix}", stored(), orientation=orientation), orientation)


@pytest.mark.parametrize("orientation", [2, 6])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_by_xmp(tmp_path, suffix, orientation):
    check(save_with_xmp(tmp_path / f"a{suffix}", stored(), orientation), orientation)


@pytest.mark.parametrize("suffix", [".tif", ".png"])
def test_no_such_orientation(tmp_path, suffix):
    check(save(tmp_path / f"a{suffix}", stored(), orientation=9), 1)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_compressed_tiffs(tmp_path, compression):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(stored()).save(tmp_path / "a.tif", compression=compression, exif=exif)
    check(str(tmp_path / "a.tif"), 6)


def test_a_png_with_its_orientation_behind_the_pixels(tmp_path):
    path = save(tmp_path / "a.png", stored(), orientation=6)
    data = Path(path).read_bytes()
    start = data.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    last = data.index(b"IEND") - 4
    Path(path).write_bytes(data[:start] + data[end:last] + data[start:end] + data[last:])
    check(path, 6)


@pytest.fixture(params=[".tif", ".png", ".jpg"])
def turned(request, tmp_path) -> str:
    """A data set of one image, stored lying on its side, whose box is that of the upright image."""
    (tmp_path / "images").mkdir()
    save(tmp_path / "images" / f"a{request.param}", stored(), orientation=6)
    # Turned clockwise, the rectangle's rows 2 … 8 become columns 24 - 8 … 24 - 2.
    content = {
        "images": [{"id": 1, "file_name": f"a{request.param}", "width": 24, "height": 40}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [16, 4, 6, 16]}],
        "categories": [{"id": 1, "name": "bright"}],
    }
    (tmp_path / "d.json").write_text(json.dumps(content))
    return f"{tmp_path}/d.json:{tmp_path}/images"


def only_bright_within(pixels: np.ndarray, box: list[float]) -> bool:
    """Whether the box of a (3, H, W) image holds all of its bright pixels, and no other."""
    x1, y1, x2, y2 = map(round, box)
    bright = np.zeros(pixels.shape[1:], bool)
    bright[y1:y2, x1:x2] = True
    return bool(((pixels > 128) == bright).all())


def test_training_and_testing_see_the_box_on_its_object(turned):
    data = CocoDetection(find_dataset(turned))
    transform = TrainTransform(min_sizes=(0,), max_size=99, flip="none")
    item = TrainDataset([data], transform, image_format="RGB", seed=0)[Place(0, 0, 0)]
    assert only_bright_within(item.image.numpy(), item.targets.boxes[0].tolist())
    item = TestDataset(data, TestTransform(0, 99), image_format="BGR")[0]
    assert (item.height, item.width) == (40, 24)
    assert only_bright_within(item.image.numpy(), [16, 4, 22, 20])


def test_detectron2_sees_it_there_too(turned):
    pytest.importorskip("detectron2")
    from detectron2.data import DatasetCatalog

    from onenet.d2 import OneNetDatasetMapper, register_datasets
    from onenet.d2.config import get_cfg

    register_datasets([turned])
    (record,) = DatasetCatalog.get(turned)
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.RANDOM_FLIP, cfg.INPUT.CROP.ENABLED = (0,), "none", False
    item = OneNetDatasetMapper(cfg)(record)
    (box,) = item["instances"].gt_boxes.tensor.tolist()
    assert only_bright_within(item["image"].numpy(), box)


def test_the_check_of_a_data_set_takes_it(turned):
    tool = load_script("tools/check_dataset.py")
    assert tool.check(find_dataset(turned), workers=0) == []
