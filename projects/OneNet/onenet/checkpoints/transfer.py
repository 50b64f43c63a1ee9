"""Getting one file from a server: resumed where the connection is cut, checked, written whole.

A download grows under a name of its own, which depends on the server's version of the file. It gets
the file's name once its size and hash are right. So a part of a file never looks whole, and it goes
on where it stopped even in another process, but never with the bytes of another version.
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from onenet.errors import CheckpointError
from onenet.files import hash_of, put_in_place

from .web import Interrupted, failure, open_url, words

logger = logging.getLogger(__name__)
_TRIES, _PAUSE = 5, 2.0  # in a row that bring nothing, and s between two
_CHUNK = 1 << 20
_LONG = 2  # s until a progress bar appears
_PAGE = (b"<!doctype html", b"<html")
_POINTER = b"version https://git-lfs."


@dataclass(frozen=True)
class Wanted:
    """A file to download.

    Attributes:
        sha256: its hash, or the first digits of it; "" if unknown.
        named: whether these digits come from the file's name.
        size: in bytes; None: unknown.
    """

    url: str
    path: Path
    sha256: str = ""
    named: bool = False
    size: int | None = None

    def fits(self, path: Path) -> bool:
        """Whether a file has the size and the hash that are known."""
        if self.size not in (None, path.stat().st_size):
            return False
        return not self.sha256 or hash_of(path).startswith(self.sha256)


def download(wanted: Wanted) -> None:
    """Download a file to its place; one process and thread at a time may do so.

    Raises:
        CheckpointError: see :func:`~.download.fetch`.
        OSError: the file cannot be written.
    """
    left, most = _TRIES, 0
    while True:
        try:
            partial = _transfer(wanted)
            break
        except Interrupted as cut:
            left = _TRIES if cut.received > most else left - 1
            most = max(most, cut.received)
            if not left or not (cut.connected or most):
                raise failure(wanted.url, str(cut)) from cut
            logger.warning("%s: %s; trying again", wanted.path.name, cut)
            time.sleep(_PAUSE)
    if not wanted.fits(partial):
        found = hash_of(partial)
        partial.unlink()
        expected = "should begin, as the name ends, with" if wanted.named else "should be"
        raise failure(
            wanted.url,
            f"the file's SHA-256 {expected} {wanted.sha256}, and is {found}",
            "It may have changed on its way or on the server. If you trust it, give the address "
            f"with #sha256={found}",
        )
    put_in_place(partial, wanted.path)


def _transfer(wanted: Wanted) -> Path:
    """Ask for a file and write what comes; returns the whole file under its temporary name."""
    response = open_url(wanted.url)
    with response:
        total = _total(wanted, response)
        version = _version(response)
        partial = _partial(wanted, f"{version} {total}")
        start = partial.stat().st_size if version and total and partial.is_file() else 0
        if start == total:
            return partial
        if 0 < start < (total or 0):
            asked = {"Range": f"bytes={start}-", "If-Range": version}
            with open_url(wanted.url, asked) as rest:
                answer = rest.headers.get("Content-Range", "")
                if rest.status == 206 and answer.startswith(f"bytes {start}-"):
                    response.close()
                    return _receive(wanted, rest, partial, start, total)
        return _receive(wanted, response, partial, 0, total)


def _total(wanted: Wanted, response: http.client.HTTPResponse) -> int | None:
    """The size of the file that a server is about to send; None: it comes in chunks."""
    headers = response.headers
    if headers.get_content_type() == "text/html":
        raise _page(wanted)
    length = headers.get("Content-Length", "")
    total = int(length) if length.isdecimal() else None
    if total == 0:
        raise failure(wanted.url, "the file on the server is empty")
    if total is None and not wanted.sha256 and not response.chunked:
        raise failure(
            wanted.url,
            "the server does not say how large the file is, so that a part of it would look whole",
            "Give the address with #sha256= and the file's SHA-256, or download the file elsewhere "
            "and give its path",
        )
    if total is not None and wanted.size not in (None, total):
        raise failure(wanted.url, f"the server sends {total:,} bytes instead of {wanted.size:,}")
    return total


def _version(response: http.client.HTTPResponse) -> str:
    """What tells versions of a file apart on a server; "" if it does not say."""
    etag = response.headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")


def _partial(wanted: Wanted, version: str) -> Path:
    """The temporary name of a version of a file; those of others are removed."""
    path = wanted.path
    digits = hashlib.sha256(f"{wanted.url} {version}".encode()).hexdigest()[:16]
    partial = path.with_name(f".{path.name}.{digits}.partial")
    for other in path.parent.iterdir():
        if other.name.startswith(f".{path.name}.") and other.suffix == ".partial":
            if other != partial:
                other.unlink()
    return partial


def _receive(
    wanted: Wanted,
    response: http.client.HTTPResponse,
    partial: Path,
    start: int,
    total: int | None,
) -> Path:
    """Write what a server sends from the byte ``start`` on."""
    free = shutil.disk_usage(partial.parent).free
    if total is not None and total - start > free:
        raise OSError(f"{total - start:,} bytes to come, {free:,} free")
    done = start
    opened = partial.open("r+b") if start else partial.open("wb")
    with opened as file, _bar(wanted, start, total) as bar:
        file.seek(start)
        while True:
            try:
                chunk = response.read(_CHUNK)
            except (OSError, http.client.HTTPException) as error:
                what = f"the connection was cut ({words(error)})"
                raise _cut(what, done, total) from error
            if not chunk:
                break
            if done == 0:
                _check_start(wanted, chunk)
            file.write(chunk)
            done += len(chunk)
            bar.update(len(chunk))
        file.flush()
        os.fsync(file.fileno())
    if total is not None and done < total:
        raise _cut("the connection was cut", done, total)
    if wanted.size not in (None, done):
        partial.unlink()
        raise failure(wanted.url, f"the server sent {done:,} bytes instead of {wanted.size:,}")
    return partial


def _cut(what: str, done: int, total: int | None) -> Interrupted:
    end = f" of {total:,}" if total is not None else ""
    return Interrupted(f"{what} after {done:,}{end} bytes", connected=True, received=done)


def _check_start(wanted: Wanted, chunk: bytes) -> None:
    if chunk[:100].lstrip().lower().startswith(_PAGE):
        raise _page(wanted)
    if chunk.startswith(_POINTER):
        raise failure(wanted.url, "it is a pointer of Git LFS, not the file itself")


def _page(wanted: Wanted) -> CheckpointError:
    return failure(
        wanted.url,
        "the server sends a web page, not a file",
        "Give the address behind the page's download button, or download the file in a browser and "
        "give its path",
    )


def _bar(wanted: Wanted, start: int, total: int | None) -> tqdm:
    return tqdm(
        desc=wanted.path.name,
        total=total,
        initial=start,
        unit="B",
        unit_scale=True,
        delay=_LONG,
        disable=None,  # where stderr is no terminal
    )
