"""Data sets in the formats of YOLO and Pascal VOC: their mutations, and their conversion.

A data set is one input: its files one after the other, each a line with its path, then its content.
"""

from __future__ import annotations

import io
import math
import os
import shutil
import unicodedata
import zlib
from contextlib import suppress
from functools import cache
from pathlib import Path
from random import Random

from _shared.voc import read_voc
from _shared.yolo import read_yolo
from helpers.label_trees import voc_file, voc_object
from PIL import Image

from onenet.data.coco_json import read_coco_json
from onenet.data.images import IMAGE_SUFFIXES

from . import texts

LINK = b"link to "  # what a file holds that is made a link
_PATHS = ["labels/._a.txt", "images/__MACOSX/a.png", "labels/classes.txt", "images/a.jpg", "labels"]
_PATHS += ["images/s/t/u/v.gif", "labels/s/A.TXT", "labels/\x1b[2J.txt", "images/\udcff.png"]
_PATHS += ["images/" + "a" * 300 + ".png", "labels/notes.json", "images/.png", "list.txt"]
_NUMBERS = ["nan", "inf", "1e999", "-1", "9" * 20, "9" * 5000, "1e999999999", "1e-999999999", "0x1"]
_NUMBERS += [
    "1_0",
    "\u0661",
    "0,5",
    ".",
    "1.",
    "--1",
    "1e",
    "2",
    "640",
    "0.5 " * 100,
    "\u2028",
    "\0",
]
_XML = ["<object>", "</object>", "<name/>", "<name> </name>", "&b;", "&#0;", "<![CDATA[", "<!--"]
_XML += [
    "<object>" * 20_000,
    "<bndbox/>",
    "<a xmlns='b'>",
    "<?x?>",
    "]]>",
    '<size width="1"/>',
    "<",
]
_XML += ["<!DOCTYPE annotation [<!ENTITY b SYSTEM 'file:///etc/passwd'>]>"]
_XML += ["<!DOCTYPE annotation [<!ENTITY a 'aaaaaaaaaa'><!ENTITY b '" + "&a;" * 999 + "'>]>"]
_CODECS = ["gbk", "big5", "shift_jis", "utf-7", "utf-16", "utf-32", "zlib", "idna", "punycode", "x"]
_CODECS += ["unicode_escape", "undefined", "rot13", "hz", "cp037"]


def _image(*size: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", size).save(file, "PNG")
    return file.getvalue()


def _join(files: dict[str, bytes | str]) -> bytes:
    parts = []
    for name, content in files.items():
        content = content.encode() if isinstance(content, str) else content
        parts.append(os.fsencode(name) + b"\n" + content)
    return texts.SEPARATOR.join(parts)


@cache
def label_trees() -> list[bytes]:
    """YOLO with boxes and polygons, with key points, and VOC with all that a file may have."""
    images = {"images/a.png": _image(40, 30), "images/s/b.png": _image(8, 64)}
    yolo = {
        **images,
        "labels/a.txt": "1 0.5 0.5 0.25 1\n0 0.1 0.1 0.5 0.2 0.3 0.75\n1.0 0 0 0.5 0.5 0.9\n",
        "labels/classes.txt": "cat\ndog\n",
        "labels/notes.json": "{}",
    }
    head = '<?xml version="1.0" encoding="utf-8"?>'
    size = "<size><width>40</width><height>30</height><depth>3</depth></size>"
    dog = voc_object("dog", 1, 1, 40, 30, difficult=1, pose="Left")
    voc = {
        **images,
        "labels/a.xml": head + voc_file("<filename>a.png</filename>", size, dog),
        "labels/s/b.xml": voc_file(voc_object("cat", 5, 0, 2.5, 30), dog),
    }
    pose = "names: [cat, dog]\nkpt_shape: [2, 2]\n"
    return [
        _join({"data.yaml": "names:\n  0: cat\n  1: dog\nnc: 2\npath: .\n", **yolo}),
        _join({"classes.txt": "cat\n dog \n", **yolo}),
        _join({"data.yaml": pose, "labels/s/b.txt": "0 0.5 0.5 1 1 0.1 0.1 1 1\n", **images}),
        _join({**voc, "images/loop": LINK + b"."}),
        _join({**voc, "list.txt": "s/b\na\n", "classes.txt": "dog\ncat\n"}),
    ]


def mutate_label_tree(rng: Random, data: bytes) -> bytes:
    """A data set with one change: of its files, of a path, or of what a file says."""
    if rng.random() < 0.03:
        return texts.mutate_bytes(rng, data)
    parts = data.split(texts.SEPARATOR)
    at = rng.randrange(len(parts))
    path, _, content = parts[at].partition(b"\n")
    how = rng.randrange(20)
    if how == 0 and len(parts) > 1:
        del parts[at]
    elif how == 1:
        parts.append(_other_path(rng, path, parts) + b"\n" + content)
    elif how < 4:
        parts[at] = _other_path(rng, path, parts) + b"\n" + content
    elif how == 4:
        parts[at] = path + b"\n" + LINK + rng.choice([b"..", b"gone", b"s", b"a.png", b"/dev/zero"])
    else:
        parts[at] = path + b"\n" + _other_content(rng, path, content)
    return texts.SEPARATOR.join(parts)


def _other_path(rng: Random, path: bytes, parts: list[bytes]) -> bytes:
    name = os.fsdecode(path)
    stem, dot, suffix = name.rpartition(".")
    others = [os.fsdecode(part.partition(b"\n")[0]) for part in parts]
    other = rng.choice(
        [
            rng.choice(_PATHS),
            rng.choice(others),
            f"{stem}{dot}{suffix.upper()}",
            f"{stem}{dot}{rng.choice(['txt', 'xml', 'yaml', 'png', 'mp4', ''])}",
            name.replace("/", "/s/", 1),
            name.replace("/s/", "/"),
            name.replace("a.", rng.choice(["ä.", unicodedata.normalize("NFD", "ä.")])),
        ]
    )
    return os.fsencode(other)


def _other_content(rng: Random, path: bytes, content: bytes) -> bytes:
    how = rng.randrange(12)
    if how == 0 or path.endswith(b".png") or not content:
        return texts.mutate_bytes(rng, content)
    if how == 1:
        return texts.recode(rng, content)
    if how == 2:
        return texts.change_line(rng, content)
    if path.endswith(b".yaml"):
        return texts.mutate_yaml(rng, content)
    if path.endswith(b".xml"):
        if how == 3:
            codec = rng.choice(_CODECS).encode()
            return b'<?xml version="1.0" encoding="' + codec + b'"?>' + content.partition(b"?>")[2]
        pattern = rng.choice([rb"</?\w+>", rb"(?<=>)[^<]+(?=<)"])
        return texts.at_token(rng, content, pattern, rng.choice([_XML, _NUMBERS]))
    return texts.at_token(rng, content, rb"[^\s]+", _NUMBERS)


def _write(folder: Path, data: bytes) -> None:
    """Write a data set's files, but none outside of the folder, nor what the disk refuses."""
    for part in data.split(texts.SEPARATOR):
        path, _, content = part.partition(b"\n")
        name = Path(os.fsdecode(path))
        if name.is_absolute() or ".." in name.parts:
            continue
        with suppress(OSError, ValueError):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if content.startswith(LINK):
                (folder / name).symlink_to(os.fsdecode(content.removeprefix(LINK)[:200]))
            else:
                (folder / name).write_bytes(content)


def read_label_tree(path: Path) -> None:
    """Convert a data set, as tools/convert_to_coco.py does; no image is forgotten."""
    folder = path.parent / "tree"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    data = path.read_bytes()
    _write(folder, data)
    labels, images, classes = folder / "labels", folder / "images", folder / "classes.txt"
    if b".xml\n" in data:
        result = read_voc(
            labels,
            images,
            classes if classes.exists() else None,
            folder / "list.txt" if (folder / "list.txt").exists() else None,
            zero_based=zlib.crc32(data) % 2 == 0,
        )
    else:
        yaml = folder / "data.yaml"
        result = read_yolo(labels, images, yaml if yaml.exists() else classes)
    result.write(folder / "coco.json")
    content = read_coco_json(folder / "coco.json")
    assert all(math.isfinite(v) for entry in content["annotations"] for v in entry["bbox"])
    assert all(entry["bbox"][2] >= 0 <= entry["bbox"][3] for entry in content["annotations"])
    if not (folder / "list.txt").exists():
        there = {
            file.relative_to(images).as_posix()
            for file in images.rglob("*")
            if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()
        }
        there = {n for n in there if "/._" not in f"/{n}" and "__MACOSX" not in n.split("/")}
        assert there <= {entry["file_name"] for entry in content["images"]}
    "\n".join(result.notes).encode(errors="backslashreplace")
