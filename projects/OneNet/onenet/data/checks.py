"""What may be wrong with a data set, from its annotations to its pixels; what training makes of it.

Training runs all but the reading of images before its first iteration; tools/check_dataset.py
runs everything and goes on where training would stop.
"""

from __future__ import annotations

import os
import signal
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any

import numpy as np

from onenet.errors import DatasetError, UnreadableImageError

from .annotations import Annotations
from .coco_json import PARTS, Problem
from .images import check_image_size, read_image
from .sources import DatasetSource, shortened

# Folders besides a data set's own that links in it may lead to, with colons in between.
LINKS_VARIABLE = "ONENET_IMAGE_LINKS"
MISSING, OUTSIDE = "images that are missing", "images behind a link out of the image folder"
UNREADABLE, OTHER_SIZE = "images that cannot be read", "images of another size than the JSON says"
EXAMPLES = 3  # that a finding holds


class Verdict(Enum):
    """What training does with something."""

    REJECTED = "rejected"
    DROPPED = "left out"
    DOUBTFUL = "taken, but looks wrong"
    TAKEN = "taken"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or worth knowing, in any number of places.

    Attributes:
        kind: in the plural.
        examples: the first of them.
    """

    verdict: Verdict
    kind: str
    count: int
    examples: tuple[str, ...] = ()

    def __str__(self) -> str:
        examples = f", such as {self.examples[0]}" if self.examples else ""
        return f"{self.verdict.value}: {self.kind} ({self.count}){examples}"


def group_problems(problems: Iterable[Problem]) -> list[Finding]:
    """Entries that no training takes, by their kind."""
    texts: dict[str, list[str]] = defaultdict(list)
    counts: Counter[str] = Counter()
    for problem in problems:
        counts[problem.kind] += 1
        if len(texts[problem.kind]) < EXAMPLES:
            texts[problem.kind].append(problem.text)
    return [
        Finding(Verdict.REJECTED, kind, count, tuple(texts[kind])) for kind, count in counts.items()
    ]


def without_problems(data: dict[str, Any], problems: Sequence[Problem]) -> dict[str, Any]:
    """The entries of a COCO file's content that have none, nor belong to one that has."""
    bad: dict[str, set[int]] = {part: set() for part in PARTS}
    for problem in problems:
        bad[problem.part].add(problem.index)
    good = {part: [e for i, e in enumerate(data[part]) if i not in bad[part]] for part in PARTS}
    images, categories = ({entry["id"] for entry in good[p]} for p in ("images", "categories"))
    good["annotations"] = [
        a for a in good["annotations"] if a["image_id"] in images and a["category_id"] in categories
    ]
    return good


def check_objects(content: dict[str, Any], data: Annotations) -> list[Finding]:
    """Boxes and classes that are no error of the format.

    Args:
        content: of a COCO file without problems.
        data: its annotations.
    """
    sized = data.with_size
    objects = ~data.crowd & sized
    with np.errstate(invalid="ignore", over="ignore"):
        sizes, first = data.sizes[data.images], data.boxes[:, :2]
        last = first + data.boxes[:, 2:]
        outside = objects & ((last <= 0) | (first >= sizes)).any(axis=1)
        beyond = objects & ((first < 0) | (last > sizes)).any(axis=1) & ~outside
    files = [image["file_name"] for image in content["images"]]
    by_image = np.bincount(data.images[objects], minlength=len(files))
    by_class = np.bincount(data.labels[objects], minlength=len(data.class_names))

    def boxes(verdict: Verdict, kind: str, mask: np.ndarray) -> Finding:
        examples = []
        for i in np.flatnonzero(mask)[:EXAMPLES]:
            entry = content["annotations"][i]
            name = files[data.images[i]]
            examples.append(f"annotation {entry['id']} of {name!r}, bbox {entry['bbox']}")
        return Finding(verdict, kind, int(mask.sum()), tuple(examples))

    def names(verdict: Verdict, kind: str, found: Sequence[str]) -> Finding:
        return Finding(verdict, kind, len(found), tuple(map(repr, found[:EXAMPLES])))

    without = [data.class_names[k] for k in np.flatnonzero(by_class == 0)]
    empty = [files[i] for i in np.flatnonzero(by_image == 0)]
    dropped, doubtful, taken = Verdict.DROPPED, Verdict.DOUBTFUL, Verdict.TAKEN
    found = [
        boxes(dropped, "boxes without a finite, positive size", ~data.crowd & ~sized),
        boxes(dropped, "boxes wholly outside of their image", outside),
        *_doubts(data.at(objects), (outside | beyond)[objects]),
        names(doubtful, "names that several classes have", _repeated(data.class_names)),
        names(doubtful, "files that are listed as several images", _repeated(files)),
        boxes(taken, "boxes reaching beyond their image, which are clipped", beyond),
        boxes(taken, "boxes that repeat another one, class and all", _repeats(data, objects)),
        boxes(taken, "crowd regions, which are no objects", data.crowd),
        names(taken, "classes without an object", without),
        names(taken, "images without an object", empty),
    ]
    return [finding for finding in found if finding.count]


def _doubts(objects: Annotations, sticking_out: np.ndarray) -> Iterator[Finding]:
    """Boxes that look as if they were not [x, y, width, height] in px."""
    boxes, sizes = objects.boxes, objects.sizes[objects.images]
    if len(boxes) < 5:  # so few may look like anything
        return
    as_corners = (boxes[:, 2:] > boxes[:, :2]).all() and (boxes[:, 2:] <= sizes).all()
    if as_corners and sticking_out.sum() > len(boxes) / 5:
        kind = "boxes, all of which would be right as [x1, y1, x2, y2]; width and height come last"
        yield Finding(Verdict.DOUBTFUL, kind, len(boxes))
    if (boxes[:, :2] + boxes[:, 2:] <= 1).all() and (sizes > 1).all():
        kind = "boxes, all of which lie within the first pixel, as shares of the image would"
        yield Finding(Verdict.DOUBTFUL, kind, len(boxes))


def _repeats(data: Annotations, objects: np.ndarray) -> np.ndarray:
    """(M,) bool: objects whose image, class and box an earlier one has."""
    rows = np.column_stack((data.images, data.labels, data.boxes))[objects]
    order = np.lexsort(rows.T)  # stable: of equal rows the earlier one comes first
    repeats = np.zeros(len(rows), dtype=bool)
    repeats[order[1:]] = (rows[order[1:]] == rows[order[:-1]]).all(axis=1)
    mask = np.zeros(len(objects), dtype=bool)
    mask[np.flatnonzero(objects)[repeats]] = True
    return mask


def _repeated(names: Sequence[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]


def find_files(source: DatasetSource, names: Iterable[str]) -> dict[str, list[str]]:
    """Images that are not where they should be; their folders are listed, and nothing is opened.

    Args:
        names: ``file_name`` entries of the JSON.

    Returns:
        ``MISSING``: names without a file. ``OUTSIDE``: names of links that lead out of the image
        folder and the folders in ``$ONENET_IMAGE_LINKS``.
    """
    more = filter(None, os.environ.get(LINKS_VARIABLE, "").split(os.pathsep))
    allowed = [os.path.realpath(place) for place in (source.image_root, *more)]
    found: dict[str, list[str]] = {MISSING: [], OUTSIDE: []}
    plain: dict[str, set[str]] = {}  # of a folder, the entries that are no links
    for name in names:
        folder, base = os.path.split(name)
        if folder not in plain:
            place = os.path.join(source.image_root, folder)
            plain[folder] = _list_plain(place) if _within(place, allowed) else set()
        if base in plain[folder]:
            continue
        path = os.path.join(source.image_root, name)
        if not _within(path, allowed):
            found[OUTSIDE].append(name)
        elif not os.path.exists(path):
            found[MISSING].append(name)
    return found


def _list_plain(folder: str) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if not entry.is_symlink()}
    except OSError:  # each name is looked up by itself
        return set()


def _within(path: str, folders: Sequence[str]) -> bool:
    real = os.path.realpath(path)
    return any(f"{real}{os.sep}".startswith(os.path.join(folder, "")) for folder in folders)


def refuse_outside(source: DatasetSource, outside: Sequence[str]) -> None:
    """Raise ``DatasetError`` where images lie behind links out of the image folder."""
    if outside:
        real = os.path.realpath(os.path.join(source.image_root, outside[0]))
        raise DatasetError(
            f"{source.json_file}: {len(outside)} images lead out of {source.image_root} by a link, "
            f"which is refused: {shortened(outside)}. If they may, name the folder that they lead "
            f"to: {LINKS_VARIABLE}={os.path.dirname(real)}"
        )


def refuse_missing(source: DatasetSource, missing: Sequence[str], total: int) -> None:
    """Raise ``DatasetError`` where images of a data set are missing."""
    if missing:
        raise DatasetError(
            f"{source.json_file}: {len(missing)} of {total} images are not in "
            f"{source.image_root}: {shortened(missing)}. Is it the right folder? Training, but not "
            "evaluation, does without them with DATALOADER.SKIP_UNREADABLE True"
        )


def check_pixels(
    source: DatasetSource, images: Sequence[dict[str, Any]], workers: int
) -> Iterator[tuple[str, str] | None]:
    """Read images; yields, in their order, what is wrong with each: kind and text.

    Args:
        images: entries of a COCO file without problems.
        workers: processes that read; 0: this one.

    Raises:
        DatasetError: a process died, as it does where memory is short.
    """
    check = partial(_pixel_problem, source)
    if workers == 0:
        yield from map(check, images)
        return
    pool = ProcessPoolExecutor(workers, initializer=_ignore_interrupts)
    try:
        yield from pool.map(check, images, chunksize=16)
    except BrokenProcessPool as error:
        raise DatasetError(
            f"A process that read images of {source.image_root} died, perhaps for want of memory; "
            "with --workers 0 the last image of the progress bar is the one"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _pixel_problem(source: DatasetSource, image: dict[str, Any]) -> tuple[str, str] | None:
    path = os.path.join(source.image_root, image["file_name"])
    kind = UNREADABLE
    try:
        pixels = read_image(path)
        kind = OTHER_SIZE
        check_image_size(
            path, pixels, image["height"], image["width"], source.json_file, image["id"]
        )
    except UnreadableImageError as error:
        return kind, str(error)
    return None


def _ignore_interrupts() -> None:
    # Ctrl-C reaches every process; the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
