"""Reading Pascal VOC's annotations: an XML file for each image."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from tqdm import tqdm

from onenet.data.images import image_size
from onenet.data.sources import is_line
from onenet.errors import DatasetError
from onenet.files import read_bytes

from .conversion import Conversion, count, some
from .label_trees import LabelTree, composed, find_labels, read_lines

# Not punycode, which is for host names and takes the square of the length.
_ENCODING = re.compile(
    rb"<\?xml[^>]*?encoding\s*=\s*[\"'](?!punycode)([\w.-]+)", re.ASCII | re.IGNORECASE
)
_SIDES = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class VocFile:
    """What an XML file says.

    Attributes:
        size: width and height of the image in px; None: it does not say.
        objects: name, xmin, ymin, xmax and ymax of each, as they are written.
    """

    size: tuple[float, float] | None
    objects: list[tuple[str, float, float, float, float]]


def read_voc(
    annotations: Path,
    images: Path,
    classes: Path | None = None,
    names: Path | None = None,
    *,
    zero_based: bool = False,
) -> Conversion:
    """Read Pascal VOC's files.

    A file counts pixels from 1 and includes the last: a box of the whole image goes from (1, 1) to
    (width, height). Two corners in the other order are the same box.

    Args:
        annotations: folder of XML files.
        images: folder of the images, with the same sub-folders.
        classes: file with class names in order, one per line; None: the classes found, sorted.
        names: file with image names without suffix, one per line; None: all images.
        zero_based: pixels count from 0, and xmax and ymax are the box's edges.

    Raises:
        DatasetError: a file is missing, malformed or without a counterpart; the message names it.
    """
    tree = find_labels(annotations, images, ".xml")
    chosen = list(tree.images) if names is None else _chosen(names, images, tree)
    if without := [tree.images[key] for key in chosen if key not in tree.labels]:
        raise DatasetError(f"{annotations}: no annotation file for {some(without)} of {images}")
    progress = tqdm(tree.labels.items(), unit="file", disable=None)
    files = {key: read_voc_file(path) for key, path in progress}
    found = {name for file in files.values() for name, *_ in file.objects}
    order = read_lines(classes) if classes else sorted(found)
    if unknown := found - set(order):
        raise DatasetError(f"{annotations} has classes that {classes} lacks: {some(unknown)}")
    if not order:
        raise DatasetError(f"{annotations}: no file has an object; give the classes by --classes")

    result = Conversion(class_names=order, notes=tree.notes)
    label_of = {name: label for label, name in enumerate(order)}
    shift = 0 if zero_based else 1
    sizes, zeros, swapped = [], [], []  # files with another <size>; boxes' files
    for key in tqdm(chosen, unit="image", disable=None):
        height, width = image_size(str(images / tree.images[key]))
        result.add_image(tree.images[key], (height, width))
        if files[key].size not in (None, (width, height)):
            sizes.append(key)
        for name, x1, y1, x2, y2 in files[key].objects:
            left, right, top, bottom = min(x1, x2), max(x1, x2), min(y1, y2), max(y1, y2)
            if (left, top) != (x1, y1):
                swapped.append(key)
            if 0 in (left, top):
                zeros.append(key)
            x, y = left - shift, top - shift
            result.add_box(label_of[name], (x, y, right - x, bottom - y))
    paths = {key: path.relative_to(annotations) for key, path in tree.labels.items()}
    if zeros and not zero_based:
        result.notes.append(
            f"{count(len(zeros), 'box has', 'boxes have')} an xmin or ymin of 0, "
            f"although VOC counts pixels from 1: {_some_files(zeros, paths)}. If these files count "
            "from 0, repeat with --zero-based"
        )
    if swapped:
        result.notes.append(
            f"{count(len(swapped), 'box has its', 'boxes have their')} corners in the other order, "
            f"and {'is' if len(swapped) == 1 else 'are'} read all the same: "
            f"{_some_files(swapped, paths)}"
        )
    if sizes:
        result.notes.append(
            f"{count(len(sizes), 'file gives', 'files give')} another <size> than the image has: "
            f"{_some_files(sizes, paths)}. Boxes in pixels of that size are wrong; convert images "
            "and boxes together"
        )
    result.note_similar_names()
    return result


def _some_files(keys: list[str], paths: dict[str, Path]) -> str:
    return some({paths[key] for key in keys})


def _chosen(names: Path, images: Path, tree: LabelTree) -> list[str]:
    """The keys of the images that a file lists."""
    keys = [composed(name) for name in read_lines(names)]
    if missing := [key for key in keys if key not in tree.images]:
        raise DatasetError(
            f"{names} names images that are not in {images}: {some(missing)}; expected names "
            "without suffix, one per line"
        )
    return keys


def read_voc_file(file: Path) -> VocFile:
    """Read an XML file.

    Raises:
        DatasetError: the file cannot be read, is no XML, or has an object without name or box.
    """
    root = _parse(file)
    if root.tag != "annotation":
        raise DatasetError(f"{file}: expected <annotation>, got <{root.tag:.60}>")
    objects = []
    for number, item in enumerate(root.findall("object"), start=1):
        name = composed((item.findtext("name") or "").strip())
        if not name:
            raise DatasetError(f"{file}: object {number} has no <name>")
        if not is_line(name):
            what = f"<name> of object {number} is {name!r:.60}"
            raise DatasetError(f"{file}: {what}; expected text without control characters")
        corners = [_pixels(item.findtext(f"bndbox/{side}")) for side in _SIDES]
        if None in corners:
            side = _SIDES[corners.index(None)]
            text = item.findtext(f"bndbox/{side}")
            raise DatasetError(
                f"{file}: <bndbox><{side}> of object {number} must be pixels, got {text!r:.60}"
            )
        objects.append((name, *corners))
    width, height = (_pixels(root.findtext(f"size/{side}")) for side in ("width", "height"))
    return VocFile((width, height) if width and height else None, objects)


def _parse(file: Path) -> ElementTree.Element:
    content = read_bytes(file)
    try:
        return ElementTree.fromstring(content)
    except ElementTree.ParseError as error:
        raise DatasetError(f"{file} is not valid XML: {error}") from error
    except (ValueError, LookupError) as error:  # the parser lacks most encodings that Python has
        declared = _ENCODING.match(content)
        if declared is None:
            raise DatasetError(f"{file} is not valid XML: {error}") from error
        encoding = declared[1].decode()
    try:
        return ElementTree.fromstring(content.decode(encoding))
    except ElementTree.ParseError as error:
        raise DatasetError(f"{file} is not valid XML: {error}") from error
    except (ValueError, LookupError) as error:
        raise DatasetError(
            f"{file} cannot be read in its encoding {encoding!r:.60}: {error}; save it as UTF-8"
        ) from error


def _pixels(text: str | None) -> float | None:
    """A coordinate in px; None if it is no number, or one that no image has."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) and abs(value) < 2**31 and "_" not in text else None
