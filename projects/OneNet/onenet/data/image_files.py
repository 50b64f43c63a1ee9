"""Finding the image files that a data set's JSON names; lists folders, opens no file."""

from __future__ import annotations

import difflib
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from urllib.parse import unquote

from PIL import Image

from onenet.errors import DatasetError

from .sources import DatasetSource, shortened

# Environment variable: folders, separated by colons, that links in a data set may lead to.
LINKS_VARIABLE = "ONENET_IMAGE_LINKS"
LONGEST = 4096  # characters of a name; a longer one is no file's, and would take long to look up
COMPARED = 1000  # the most files that a name is compared with letter by letter, which is slow


@dataclass(frozen=True)
class FoundFiles:
    """The files of a data set's images.

    Attributes:
        files: for each name of the JSON its file, relative to the image folder; the name itself if
            there is none.
        respelled: the names that the disk spells differently, each with its file.
        missing: the names without a file.
        outside: the files behind links that lead out of the image folder and out of the folders in
            ``$ONENET_IMAGE_LINKS``.
    """

    files: list[str]
    respelled: dict[str, str]
    missing: list[str]
    outside: list[str]


def find_files(source: DatasetSource, names: Iterable[str]) -> FoundFiles:
    """Find the images of a data set; lists each folder once.

    A name without a file stands for the one file that differs from it only in upper and lower case,
    in Unicode normalization, in a slash for a backslash, in a character for its ``%20``, or in
    leading folders that end the image folder's path. If there are several such files, or another
    name stands for the same file, the name is missing.

    Args:
        names: ``file_name`` entries of the JSON.
    """
    names = list(names)
    disk = _Disk(source)
    places = {name: disk.place(name) for name in names}
    respelled = {}
    for name, place in places.items():
        if place is _Place.NOWHERE and len(files := disk.spelled_otherwise(name)) == 1:
            respelled[name] = files[0]
    if respelled:
        claims = Counter(os.path.normpath(respelled.get(name, name)) for name in places)
        respelled = {name: file for name, file in respelled.items() if claims[file] == 1}
        places |= {name: disk.place(file) for name, file in respelled.items()}
    files = [respelled.get(name, name) for name in names]
    return FoundFiles(
        files=files,
        respelled=respelled,
        missing=[name for name in names if places[name] is _Place.NOWHERE],
        outside=[
            file for name, file in zip(names, files, strict=True) if places[name] is _Place.OUTSIDE
        ],
    )


def describe_respelled(found: FoundFiles) -> str:
    """One line about the names that the disk spells differently; there must be one."""
    name, file = next(iter(found.respelled.items()))
    return (
        f"{len(found.respelled)} file names are spelled differently on the disk: {name!r} is "
        f"{file!r}"
    )


def refuse_outside(source: DatasetSource, outside: Sequence[str]) -> None:
    """Raise ``DatasetError`` if any image lies behind a link out of the image folder."""
    if outside:
        real = os.path.realpath(os.path.join(source.image_root, outside[0]))
        raise DatasetError(
            f"{source.json_file}: {len(outside)} images are links that lead out of "
            f"{source.image_root}, which is not allowed: {shortened(outside)}. To allow it, name "
            f"the folder they lead to: {LINKS_VARIABLE}={os.path.dirname(real)}"
        )


def refuse_missing(
    source: DatasetSource, missing: Sequence[str], total: int, *, allow_some: bool = False
) -> None:
    """Raise ``DatasetError`` if any image of a data set is missing.

    Args:
        missing: names of the missing images.
        total: number of images in the data set.
        allow_some: raise only if all are missing.
    """
    if missing and not (allow_some and len(missing) < total):
        nearest = nearest_file(source, missing[0])
        raise DatasetError(
            f"{source.json_file}: {len(missing)} of {total} images are not in "
            f"{source.image_root}: {shortened(missing)} ({nearest}). Is it the right folder? "
            "Training (not evaluation) skips missing images with DATALOADER.SKIP_UNREADABLE True"
        )


def nearest_file(source: DatasetSource, name: str) -> str:
    """Which file of the image folder a missing name may mean, or what else the folder holds."""
    disk = _Disk(source)
    base = name.replace("\\", "/").rpartition("/")[2]
    bases = {_key(base), _key(unquote(base))}
    stems = {os.path.splitext(key)[0] for key in bases}
    images = Image.registered_extensions()
    every, same, alike = [], disk.spelled_otherwise(name), []
    for place, _, files in os.walk(disk.root):
        for file in files:
            path = os.path.relpath(os.path.join(place, file), disk.root)
            every.append(path)
            stem, suffix = os.path.splitext(_key(file))
            if stem + suffix in bases:
                same.append(path)
            elif stem in stems and suffix in images:
                alike.append(path)
    if not every:
        return "the folder holds no file"
    near = sorted(set(same)) or sorted(alike)
    if not near and len(every) <= COMPARED:
        near = difflib.get_close_matches(name, every, n=1)
    if near:
        return f"nearest to {name!r}: {' or '.join(map(repr, near[:2]))}"
    return f"the folder holds {len(every)} files, such as {min(every)!r}"


class _Place(Enum):
    THERE = "there"
    NOWHERE = "nowhere"
    OUTSIDE = "outside"


@dataclass(frozen=True)
class _Listing:
    """The entries of a folder; ``readable`` is false if they could not be listed."""

    plain: frozenset[str] = frozenset()
    links: frozenset[str] = frozenset()
    readable: bool = True


class _Disk:
    """The folders of a data set's images, each listed at most once."""

    def __init__(self, source: DatasetSource) -> None:
        self.root = str(source.image_root)
        more = filter(None, os.environ.get(LINKS_VARIABLE, "").split(os.pathsep))
        self._allowed = [os.path.realpath(place) for place in (self.root, *more)]
        self._above = [_key(part) for part in os.path.abspath(self.root).split(os.sep)]
        self._listings: dict[str, _Listing] = {}
        self._keys: dict[str, dict[str, list[str]]] = {}

    def place(self, name: str) -> _Place:
        """Where an image is that the disk spells as in ``name``."""
        if len(name) > LONGEST:
            return _Place.NOWHERE
        folder, base = os.path.split(name)
        listing = self._list(folder)
        if base in listing.plain:
            return _Place.THERE
        path = os.path.join(self.root, name)
        # Checked first, since resolving links takes long: no file of that name, nor a link.
        if listing.readable and not os.path.lexists(path):
            return _Place.NOWHERE
        if not _within(path, self._allowed):
            return _Place.OUTSIDE
        return _Place.THERE if os.path.exists(path) else _Place.NOWHERE

    def spelled_otherwise(self, name: str) -> list[str]:
        """The files that a name may stand for; see :func:`find_files`."""
        if len(name) > LONGEST:
            return []
        spellings = (self._matches("", parts) for parts in self._spellings(name))
        return list(dict.fromkeys(file for files in spellings for file in files))

    def _spellings(self, name: str) -> Iterator[list[str]]:
        texts = [name, unquote(name)]
        for text in dict.fromkeys([*texts, *(text.replace("\\", "/") for text in texts)]):
            parts = [part for part in text.split("/") if part not in ("", ".")]
            # What the name hides must not leave the folder, either.
            if text.startswith("/") or ".." in parts:
                continue
            for start in range(min(len(parts), len(self._above))):
                leading = [_key(part) for part in parts[:start]]
                if leading == self._above[len(self._above) - start :]:
                    yield parts[start:]

    def _matches(self, folder: str, parts: list[str]) -> Iterator[str]:
        head, *rest = parts
        entries = self._by_key(folder).get(_key(head), [])
        for entry in [head] if head in entries else entries:
            path = os.path.join(folder, entry)
            if rest:
                yield from self._matches(path, rest)
            elif os.path.isfile(os.path.join(self.root, path)):
                yield path

    def _by_key(self, folder: str) -> dict[str, list[str]]:
        if folder not in self._keys:
            listing, entries = self._list(folder), defaultdict(list)
            for entry in (*listing.plain, *listing.links):
                entries[_key(entry)].append(entry)
            self._keys[folder] = entries
        return self._keys[folder]

    def _list(self, folder: str) -> _Listing:
        if folder not in self._listings:
            self._listings[folder] = self._read(os.path.join(self.root, folder))
        return self._listings[folder]

    def _read(self, folder: str) -> _Listing:
        if not _within(folder, self._allowed):
            return _Listing(readable=False)
        plain, links = [], []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    (links if entry.is_symlink() else plain).append(entry.name)
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError:  # place then looks up each name by itself
            return _Listing(readable=False)
        return _Listing(frozenset(plain), frozenset(links))


def _key(name: str) -> str:
    """The same text for names that differ only in case or Unicode normalization."""
    if name.isascii():
        return name.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).lower())


def _within(path: str, folders: Sequence[str]) -> bool:
    real = os.path.realpath(path)
    return any(f"{real}{os.sep}".startswith(os.path.join(folder, "")) for folder in folders)
