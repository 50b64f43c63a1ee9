"""Folders in which every image has a label file of the same name, as in YOLO and Pascal VOC."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from onenet.data.images import IMAGE_SUFFIXES
from onenet.data.sources import is_line
from onenet.errors import DatasetError, did_you_mean
from onenet.files import read_text

from .conversion import count, some


@dataclass(frozen=True)
class LabelTree:
    """The label files and images in two folders and their sub-folders.

    A key is the path of a file relative to its folder, without suffix. Its accents are composed
    characters, however the disk spells them.

    Attributes:
        labels: path of each label file, by key, in order.
        images: path of each image relative to the folder of the images, by key, in order.
        lists: paths of files that list the classes, and are no labels.
        notes: what was left out, a line each.
    """

    labels: dict[str, Path]
    images: dict[str, str]
    lists: list[Path]
    notes: list[str]


def find_labels(
    annotations: Path, images: Path, suffix: str, *, class_list: str | None = None
) -> LabelTree:
    """Find the label files and images in two folders, which may be the same one.

    Args:
        suffix: of the label files, such as ".txt".
        class_list: name of files with this suffix that list the classes.

    Raises:
        DatasetError: a folder is missing or cannot be read, there is no label file, a label file
            has no image, or two files have the same key.
    """
    notes: list[str] = []
    found = {folder: list(_walk(folder, notes)) for folder in dict.fromkeys((annotations, images))}
    all_labels = [name for name in found[annotations] if _suffix(name) == suffix]
    lists = [name for name in all_labels if PurePosixPath(name).name == class_list]
    labels = [name for name in all_labels if name not in lists]
    pictures = [name for name in found[images] if _suffix(name) in IMAGE_SUFFIXES]
    if not labels:
        raise DatasetError(f"{annotations}: there is no {suffix} file in this folder or below")

    used = {_absolute(annotations, name) for name in all_labels}
    used |= {_absolute(images, name) for name in pictures}
    others: list[str] = []
    for folder, kind in ((annotations, f"not {suffix}"), (images, "not images")):
        others = [name for name in found[folder] if _absolute(folder, name) not in used]
        used |= {_absolute(folder, name) for name in others}
        if others:
            what = f"{count(len(others), 'file')} in {folder}, {kind}"
            notes.append(f"left out {what}: {some(others)}")

    tree = LabelTree(
        {key: annotations / name for key, name in _by_key(labels, "label files").items()},
        _by_key(pictures, "images"),
        [annotations / name for name in lists],
        notes,
    )
    if alone := tree.labels.keys() - tree.images.keys():
        raise DatasetError(_without_image(alone, annotations, images, tree, others))
    return tree


def _without_image(
    keys: Set[str], annotations: Path, images: Path, tree: LabelTree, others: list[str]
) -> str:
    """What to say of label files without image.

    Args:
        keys: of the label files.
        others: files in the folder of the images that are no images.
    """
    names = [tree.labels[key].relative_to(annotations) for key in keys]
    near = [name for name in others if _key(name) in keys]
    advice = f"; {some(near)} has another" if near else did_you_mean(min(keys), tree.images)
    return (
        f"{annotations}: no image for {some(names)}; expected it in {images}, in the same "
        f"sub-folder, with the same name and one of the endings {' '.join(IMAGE_SUFFIXES)}"
        f"{advice or '; is --images the right folder?'}"
    )


def _walk(folder: Path, notes: list[str]) -> Iterator[str]:
    """The files of a folder and its sub-folders, as relative paths with slashes, in order.

    Leaves out what macOS adds, what is no file, and links that lead to where they are; notes it.
    """

    def fail(error: OSError) -> None:
        raise DatasetError(f"{error.filename} cannot be read: {error.strerror}") from error

    if not folder.is_dir():
        raise DatasetError(f"{folder} is not a folder")
    linked: set[str] = set()
    of_macos: list[str] = []
    for place, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        folders.sort()
        if place != str(folder) and os.path.islink(place):
            real = os.path.realpath(place)
            if real in linked or f"{os.path.realpath(os.path.dirname(place))}{os.sep}".startswith(
                f"{real}{os.sep}"
            ):
                notes.append(f"left out the link {place!r}, whose files are read without it")
                folders.clear()
                continue
            linked.add(real)
        for file in sorted(files):
            path = os.path.join(place, file)
            name = Path(os.path.relpath(path, folder)).as_posix()
            if file.startswith("._") or "__MACOSX" in name.split("/"):
                of_macos.append(name)
            elif os.path.exists(path) and not os.path.isfile(path):
                notes.append(f"left out {path!r}, which is no regular file")
            else:
                yield name
    if of_macos:
        what = f"{count(len(of_macos), 'file')} in {folder} that macOS adds"
        notes.append(f"left out {what}: {some(of_macos)}")


def _absolute(folder: Path, name: str) -> str:
    return os.path.abspath(folder / name)


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _by_key(names: Iterable[str], what: str) -> dict[str, str]:
    """The names by their keys; raises ``DatasetError`` if two have the same."""
    found: dict[str, str] = {}
    for name in names:
        key = _key(name)
        if key in found:
            raise DatasetError(
                f"{found[key]} and {name} are two {what} of one name; remove or rename one"
            )
        found[key] = name
    return found


def _key(name: str) -> str:
    """The key of a relative path; see :class:`LabelTree`."""
    return composed(str(PurePosixPath(name).with_suffix("")))


def composed(text: str) -> str:
    """A text with its accents as composed characters, one way of the two that Unicode has."""
    return unicodedata.normalize("NFC", text)


def read_lines(file: Path) -> list[str]:
    """The lines of a text file that are not blank, without white space around them.

    Raises:
        DatasetError: the file cannot be read, or a line is in it twice or has control characters.
    """
    seen: dict[str, int] = {}
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        text = composed(line.strip())
        if not text:
            continue
        if not is_line(text):
            raise DatasetError(f"{file}:{number}: {text!r:.60} has control characters")
        if text in seen:
            raise DatasetError(f"{file}:{number}: {text!r:.60} is already in line {seen[text]}")
        seen[text] = number
    return list(seen)
