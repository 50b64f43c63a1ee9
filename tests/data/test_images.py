"""Image files of every kind are refused with one sentence, or read as Detectron2 reads them."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from helpers.transform_script import picture
from PIL import Image

from onenet.data.images import check_image_size, image_size, read_image
from onenet.errors import DatasetError, OneNetError, UnreadableImageError


def chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def png(width: int, height: int, pixels: bytes = b"") -> bytes:
    """An 8-bit RGB PNG file whose header may state another size than its pixels have."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(pixels))
    return b"\x89PNG\r\n\x1a\n" + head + data + chunk(b"IEND", b"")


def cut(path: Path, suffix: str) -> None:
    """Write the first half of an image file in the format of ``suffix``."""
    whole = path.with_suffix(suffix)
    Image.fromarray(picture(50, 50)).save(whole)
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])


# What lies at the path, and how the error starts.
REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda path: None, "does not exist; check the image folder"),
    "broken-link": (lambda path: path.symlink_to("gone.png"), "does not exist"),
    "empty": (lambda path: path.touch(), "cannot be read: cannot identify image file"),
    "no-image": (lambda path: path.write_text("<html>404</html>"), "cannot be read: cannot ident"),
    "folder": (lambda path: path.mkdir(), "cannot be read: it is not a regular file"),
    "pipe": (lambda path: os.mkfifo(path), "cannot be read: it is not a regular file"),
    "truncated-jpeg": (lambda path: cut(path, ".jpg"), "cannot be read: .*truncated"),
    "truncated-png": (lambda path: cut(path, ".png"), "cannot be read: "),
    "truncated-webp": (lambda path: cut(path, ".webp"), "cannot be read: "),
    "no-pixels": (lambda path: path.write_bytes(png(9, 9)), "cannot be read: .*truncated"),
    "heic": (
        lambda path: path.write_bytes(b"\0\0\0\x18ftypheic" + bytes(99)),
        "cannot be read: cannot ident.*: it is HEIC, as phones write it. Convert it to JPEG",
    ),
    "cut-in-its-header": (
        lambda path: path.write_bytes(png(9, 9)[:20]),
        "cannot be read: Truncated File Read",
    ),
    "bad-header": (lambda path: path.write_bytes(png(0, 0)), "cannot be read: "),
    "bomb": (
        lambda path: path.write_bytes(png(20_000, 20_000)),
        "cannot be read: .*decompression bomb.* Make the image smaller, or cut it into tiles",
    ),
}


@pytest.fixture
def detectron2():
    """Detectron2's reading of a file, through OneNet's mapper."""
    pytest.importorskip("detectron2")
    from onenet.d2 import OneNetDatasetMapper
    from onenet.d2.config import get_cfg

    mapper = OneNetDatasetMapper(get_cfg(), is_train=False)
    return lambda path: mapper.read({"file_name": path})


@pytest.mark.parametrize("kind", REFUSED)
def test_refused(tmp_path, kind):
    make, told = REFUSED[kind]
    make(tmp_path / "a.png")
    with pytest.raises(UnreadableImageError, match=f"^Image .*a.png' {told}"):
        read_image(str(tmp_path / "a.png"))


@pytest.mark.parametrize("kind", [kind for kind in REFUSED if kind != "truncated-jpeg"])
def test_refused_when_only_the_size_is_read(tmp_path, kind):
    """As by a converter, which reads no more of a JPEG file than its header."""
    make, told = REFUSED[kind]
    make(tmp_path / "a.png")
    with pytest.raises(UnreadableImageError, match=f"^Image .*a.png' {told}"):
        image_size(str(tmp_path / "a.png"))


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_by_detectron2s_reader(tmp_path, detectron2, kind):
    make, told = REFUSED[kind]
    make(tmp_path / "a.png")
    with pytest.raises(UnreadableImageError, match=f"^Image .*a.png' {told}"):
        detectron2(str(tmp_path / "a.png"))


def test_every_error_of_a_decoder_is_told(tmp_path, monkeypatch):
    Image.fromarray(picture(4, 4)).save(tmp_path / "a.png")
    for error in (MemoryError(), IndexError("0"), struct.error("unpack"), EOFError()):
        monkeypatch.setattr(Image, "open", lambda path, error=error: (_ for _ in ()).throw(error))
        with pytest.raises(UnreadableImageError, match="a.png' cannot be read: .+"):
            read_image(str(tmp_path / "a.png"))


def test_refusals_are_errors_of_the_data_set():
    assert issubclass(UnreadableImageError, DatasetError)
    assert issubclass(UnreadableImageError, OneNetError)


def test_another_size_than_said(tmp_path):
    with pytest.raises(UnreadableImageError, match=r"7 x 5 px .*d.json says 5 x 7 for image id 3"):
        check_image_size("a.png", np.zeros((5, 7, 3)), 7, 5, "d.json", 3)
    check_image_size("a.png", np.zeros((5, 7, 3)), 5, 7, "d.json", 3)


def plain(mode: str, color: Any, name: str = "a.png", **options: Any) -> Callable[[Path], Path]:
    def save(folder: Path) -> Path:
        image = Image.new(mode, (3, 2), color)
        if mode == "P":
            image.putpalette([1, 2, 3] * 256)
        image.save(folder / name, **options)
        return folder / name

    return save


def sixteen_bits(*values: int) -> Callable[[Path], Path]:
    def save(folder: Path) -> Path:
        image = np.full((2, 3, len(values)), values, dtype=np.uint16).squeeze()
        assert cv2.imwrite(str(folder / "a.png"), image)
        return folder / "a.png"

    return save


def two_frames(folder: Path) -> Path:
    first, second = (Image.new("RGB", (3, 2), color) for color in ((255, 0, 0), (0, 0, 255)))
    first.save(folder / "a.gif", save_all=True, append_images=[second])
    return folder / "a.gif"


# How an image is written, and the colour its pixels have once read.
READ: dict[str, tuple[Callable[[Path], Path], tuple[int, int, int]]] = {
    "grey": (plain("L", 100), (100, 100, 100)),
    "grey-alpha": (plain("LA", (100, 7)), (100, 100, 100)),
    "black-and-white": (plain("1", 1), (255, 255, 255)),
    "rgba": (plain("RGBA", (10, 20, 30, 128)), (10, 20, 30)),
    "palette": (plain("P", 0), (1, 2, 3)),
    "palette-transparent": (plain("P", 0, transparency=0), (1, 2, 3)),
    "cmyk": (plain("CMYK", (10, 20, 30, 40), "a.tif"), (207, 198, 190)),
    "16-bit-grey": (sixteen_bits(100), (100, 100, 100)),
    "16-bit-grey-bright": (sixteen_bits(300), (255, 255, 255)),
    "16-bit-colour": (sixteen_bits(9 * 256, 8 * 256, 7 * 256 + 255), (7, 8, 9)),  # cv2's BGR
    "32-bit-grey": (plain("I", 100, "a.tif"), (100, 100, 100)),
    "float-grey": (plain("F", 100.4, "a.tif"), (100, 100, 100)),
    "several-frames": (two_frames, (255, 0, 0)),
    "wrong-suffix": (plain("RGB", (1, 2, 3), "a.jpg", format="PNG"), (1, 2, 3)),
    "strange-name": (plain("RGB", (1, 2, 3), "drei Vögel 鳥 $x$ 100%.png"), (1, 2, 3)),
}


@pytest.mark.parametrize("kind", READ)
def test_read(tmp_path, kind):
    save, color = READ[kind]
    image = read_image(str(save(tmp_path)))
    assert image.shape == (2, 3, 3) and image.dtype == np.uint8
    assert (image == color).all()


@pytest.mark.parametrize("kind", READ)
def test_read_as_detectron2_does(tmp_path, kind):
    pytest.importorskip("detectron2")
    from detectron2.data.detection_utils import read_image as theirs

    path = str(READ[kind][0](tmp_path))
    assert (read_image(path, "BGR") == theirs(path, "BGR")).all()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize(
    "block", [b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"\xff" * 60]
)
def test_a_broken_exif_block_turns_nothing(tmp_path, block):
    Image.fromarray(picture(5, 7)).save(tmp_path / "a.jpg", exif=block)
    assert read_image(str(tmp_path / "a.jpg")).shape == (5, 7, 3)
