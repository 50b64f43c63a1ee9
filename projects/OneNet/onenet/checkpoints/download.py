"""Files behind ``http(s)`` addresses: downloaded once, into torch's cache or a folder; no torch."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

from onenet.errors import CheckpointError
from onenet.files import lock_file

from .transfer import Wanted, download
from .web import failure, shown

logger = logging.getLogger(__name__)
_WAIT = 0.2  # s between two looks at what another process downloads
_SHA256 = re.compile(r"sha256=([0-9a-fA-F]{64})")
_SUFFIX = re.compile(r"-([0-9a-f]{8,64})\.[a-z]\w*$")  # torch's: the first digits of the SHA-256
_one = threading.Lock()  # a lock on a file does not keep out this process's other threads


def cache_folder() -> Path:
    """The folder in which torch keeps what it downloads (``TORCH_HOME``), without importing it."""
    if hub := sys.modules.get("torch.hub"):
        return Path(hub.get_dir()) / "checkpoints"
    caches = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("TORCH_HOME", os.path.join(caches, "torch"))
    return Path(os.path.expanduser(home)) / "hub" / "checkpoints"


def fetch(
    address: str, folder: Path | None = None, *, size: int | None = None, sha256: str = ""
) -> Path:
    """The file behind an ``http(s)`` address, downloaded unless it is here already.

    Args:
        address: may end with ``#sha256=`` and 64 hexadecimal digits, which the file must have.
            Without them, a name that ends as torch's do (``-f37072fd.pth``) gives the first digits.
        folder: for the file; None: torch's cache. There, names that hold no hash lie in a folder
            for their address, as many models have the same name.
        size: in bytes, if it is known.
        sha256: hash of the file, if it is known; 64 hexadecimal digits.

    Raises:
        CheckpointError: no network, no such file, or not the right one; the message names the
            address, the reason and the way out. What ``folder`` held is unchanged.
    """
    wanted = _parse(address, folder, size, sha256)
    path = wanted.path
    if _is_here(wanted, replace=folder is None):
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path):
            if not _is_here(wanted, replace=folder is None):
                logger.info("Downloading %s to %s", shown(wanted.url), path)
                download(wanted)
    except OSError as error:
        raise failure(
            wanted.url,
            f"{path.parent} cannot be written ({error.strerror or error})",
            "Make room or set TORCH_HOME to another folder"
            if folder is None
            else "Make room or give another folder",
        ) from error
    return path


def file_name(address: str) -> str:
    """The name of the file that an address names; "" if it names none.

    Letters that some system does not take in a name become ``_``.
    """
    name = unquote(urlsplit(address).path.rpartition("/")[2])
    return re.sub(r"[^\w.+=-]", "_", name)[-150:].lstrip(".")


def _parse(address: str, folder: Path | None, size: int | None, sha256: str) -> Wanted:
    url, fragment = urldefrag(address)
    if fragment:
        if not (match := _SHA256.fullmatch(fragment)):
            raise CheckpointError(
                f"{shown(url)}: after # expected sha256= and 64 hexadecimal digits, got "
                f"{fragment!r:.100}"
            )
        sha256 = match[1]
    name = file_name(url)
    if not name:
        raise CheckpointError(f"{shown(url)} names no file: expected an address that ends in one")
    named = not sha256 and _digits(name)
    sha256 = sha256.lower() or named
    if folder is None:
        folder = cache_folder()
        if not named:
            folder /= hashlib.sha256(url.encode()).hexdigest()[:16]
    return Wanted(url, folder / name, sha256, bool(named), size)


def _digits(name: str) -> str:
    """The first digits of the SHA-256 that a name ends with, as torch's do; "" if it has none."""
    found = _SUFFIX.search(name)
    if not found:
        return ""
    with contextlib.suppress(ValueError):
        datetime.strptime(found[1], "%Y%m%d")  # a date, as in r50-20201210.pth
        return ""
    return found[1]


def _is_here(wanted: Wanted, *, replace: bool) -> bool:
    path = wanted.path
    if not path.is_file():
        return False
    if wanted.fits(path):
        return True
    if not replace:
        raise CheckpointError(
            f"{path} is there already, with another content than {shown(wanted.url)}: move it, or "
            "give another folder"
        )
    logger.warning("%s has another size or SHA-256 than it must: downloading it again", path)
    return False


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep other processes and threads from downloading the same file."""
    lock = path.with_name(f".{path.name}.lock")
    with _one, lock.open("a+b") as file:
        if not lock_file(file):
            logger.info("Another process downloads %s: waiting for it", path)
            while not lock_file(file):
                time.sleep(_WAIT)
        yield
        # Whoever waits for this lock finds the file. Windows does not remove what is open.
        with contextlib.suppress(OSError):
            lock.unlink()
