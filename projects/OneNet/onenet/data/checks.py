"""Checks of a data set, from annotations to pixels, and what training does about each finding.

Training runs every check except reading the images before its first iteration.
tools/check_dataset.py runs them all and continues where training would stop.
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
from .images import check_image_size, is_clipped, read_image
from .shared_memory import shared_memory
from .sources import DatasetSource

UNREADABLE, OTHER_SIZE = "images that cannot be read", "images of another size than the JSON says"
CLIPPED = "images whose values above 255 become white; scale them to 8 bits"
EXAMPLES = 3  # how many a finding keeps


class Verdict(Enum):
    """What training does with what was found."""

    REJECTED = "rejected"
    DROPPED = "left out"
    DOUBTFUL = "taken, but looks wrong"
    TAKEN = "taken"


@dataclass(frozen=True)
class Finding:
    """One kind of problem, or of fact worth knowing, and how often it occurs.

    Attributes:
        verdict: what training does about it.
        kind: description in the plural.
        count: number of occurrences.
        examples: the first ``EXAMPLES`` occurrences.
    """

    verdict: Verdict
    kind: str
    count: int
    examples: tuple[str, ...] = ()

    def __str__(self) -> str:
        examples = f", such as {self.examples[0]}" if self.examples else ""
        return f"{self.verdict.value}: {self.kind} ({self.count}){examples}"


def group_problems(problems: Iterable[Problem]) -> list[Finding]:
    """One finding for each kind of problem; training rejects all of them."""
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
    """The content of a COCO file without its bad entries and the annotations that refer to them.

    Args:
        data: as :func:`~onenet.data.coco_json.parse_coco_json` returns it.
        problems: all problems of ``data``.
    """
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
    """Find boxes and classes that are valid COCO but suspicious, dropped or worth knowing.

    Args:
        content: content of a COCO file without problems.
        data: its annotations.
    """
    sized, objects = data.with_size, data.objects
    outside = sized & ~data.usable
    with np.errstate(invalid="ignore", over="ignore"):
        sizes, first = data.sizes[data.images], data.boxes[:, :2]
        beyond = objects & ((first < 0) | (first + data.boxes[:, 2:] > sizes)).any(axis=1)
    drawn = ~data.crowd & sized  # whether their image shows them or not
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
        boxes(dropped, "boxes without a finite, positive size", ~sized),
        boxes(dropped, "boxes wholly outside their image", outside),
        *_doubts(data.at(drawn), (outside | beyond)[drawn]),
        names(doubtful, "class names used more than once", _repeated(data.class_names)),
        names(doubtful, "files listed as more than one image", _repeated(files)),
        boxes(taken, "boxes that extend beyond their image and are clipped", beyond),
        boxes(taken, "boxes with the same class and corners as another", _repeats(data, objects)),
        boxes(taken, "crowd regions, which do not count as objects", data.crowd & data.usable),
        names(taken, "classes without an object", without),
        names(taken, "images without an object", empty),
    ]
    return [finding for finding in found if finding.count]


def _doubts(objects: Annotations, sticking_out: np.ndarray) -> Iterator[Finding]:
    """Findings about boxes that look as if they were not [x, y, width, height] in px.

    Args:
        objects: T boxes of objects with a valid size.
        sticking_out: (T,) bool, boxes that extend beyond their image.
    """
    boxes, sizes = objects.boxes, objects.sizes[objects.images]
    if len(boxes) < 5:  # too few to tell
        return
    as_corners = (boxes[:, 2:] > boxes[:, :2]).all() and (boxes[:, 2:] <= sizes).all()
    if as_corners and sticking_out.sum() > len(boxes) / 5:
        kind = "boxes, all of which fit as [x1, y1, x2, y2]; COCO's are [x, y, width, height]"
        yield Finding(Verdict.DOUBTFUL, kind, len(boxes))
    if (boxes[:, :2] + boxes[:, 2:] <= 1).all() and (sizes > 1).all():
        kind = "boxes, all of which lie within the first pixel, as fractions of the image would"
        yield Finding(Verdict.DOUBTFUL, kind, len(boxes))


def _repeats(data: Annotations, objects: np.ndarray) -> np.ndarray:
    """(T,) bool: objects with the same image, class and box as an earlier one.

    Args:
        objects: (T,) bool, the boxes of ``data`` to compare.
    """
    rows = np.column_stack((data.images, data.labels, data.boxes))[objects]
    order = np.lexsort(rows.T)  # stable: equal rows keep their order
    repeats = np.zeros(len(rows), dtype=bool)
    repeats[order[1:]] = (rows[order[1:]] == rows[order[:-1]]).all(axis=1)
    mask = np.zeros(len(objects), dtype=bool)
    mask[np.flatnonzero(objects)[repeats]] = True
    return mask


def _repeated(names: Sequence[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]


def check_pixels(
    source: DatasetSource, images: Sequence[dict[str, Any]], workers: int
) -> Iterator[tuple[str, str] | None]:
    """Read images and yield, in order, the kind and text of each one's problem, or None.

    Args:
        images: image entries of a COCO file without problems.
        workers: number of processes that read; 0: read in this process.

    Raises:
        DatasetError: a worker process cannot be started, or died, as when memory runs out.
    """
    check = partial(_pixel_problem, source)
    if workers == 0:
        yield from map(check, images)
        return
    try:
        pool = ProcessPoolExecutor(workers, initializer=_ignore_interrupts)
        results = pool.map(check, images, chunksize=16)
    except OSError as error:
        raise DatasetError(
            f"--workers {workers}: the processes that read images cannot be started "
            f"({error.strerror}). {shared_memory()}. With --workers 0, this process reads"
        ) from error
    try:
        yield from results
    except BrokenProcessPool as error:
        raise DatasetError(
            f"A process reading images of {source.image_root} died, perhaps because memory ran "
            f"out. {shared_memory()}. To find the image, repeat with --workers 0: the progress bar "
            "stops at it"
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
    return (CLIPPED, repr(image["file_name"])) if is_clipped(path) else None


def _ignore_interrupts() -> None:
    # Ctrl-C reaches every process; the main process ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
