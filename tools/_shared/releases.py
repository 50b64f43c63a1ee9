"""The files of a GitHub release, by GitHub's public API."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from onenet.checkpoints.web import get, is_url, shown
from onenet.data.sources import is_line
from onenet.errors import CheckpointError, did_you_mean

API = "https://api.github.com/repos/PeizeSun/OneNet/releases/tags/v0.1"
PAGE = "https://github.com/PeizeSun/OneNet/releases/tag/v0.1"
BY_HAND = (
    f"Download the file in a browser from {PAGE} and give its path as MODEL.WEIGHTS. A valid token "
    "in the environment variable GITHUB_TOKEN raises GitHub's limit of requests"
)
_DIGEST = re.compile(r"sha256:([0-9a-fA-F]{64})")


@dataclass(frozen=True)
class Asset:
    """A file of a release.

    Attributes:
        size: in bytes.
        sha256: 64 hexadecimal digits; "" if GitHub does not give them.
    """

    name: str
    size: int
    url: str
    sha256: str


def read_release(api: str = API) -> list[Asset]:
    """Ask for the files of a release.

    Args:
        api: the address of a release in GitHub's API, or of a mirror that answers in its form. A
            token in ``GITHUB_TOKEN`` goes to api.github.com alone.

    Raises:
        CheckpointError: no answer, or one in another form.
    """
    if not is_url(api):
        raise CheckpointError(f"--api {api}: expected an http:// or https:// address")
    content = get(api, headers(api), way_out=BY_HAND)
    try:
        return [_asset(entry) for entry in json.loads(content)["assets"]]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{shown(api)} answers in another form than GitHub's API for a release: expected JSON "
            f"with 'assets', each with name, size and browser_download_url. {BY_HAND}"
        ) from error


def headers(api: str) -> dict[str, str]:
    """The headers of a request to GitHub's API."""
    found = {"Accept": "application/vnd.github+json", "X-GitHub-Api-Version": "2022-11-28"}
    token = os.environ.get("GITHUB_TOKEN", "").strip()
    parts = urlsplit(api)
    if token and (parts.scheme, parts.hostname) == ("https", "api.github.com"):
        found["Authorization"] = f"Bearer {token}"
    return found


def _asset(entry: Any) -> Asset:
    name, size, url = (entry[key] for key in ("name", "size", "browser_download_url"))
    if not (is_line(name) and type(size) is int and size >= 0 and is_line(url) and is_url(url)):
        raise ValueError("of another type")
    digest = _DIGEST.fullmatch(entry.get("digest") or "")  # GitHub gives none for old files
    return Asset(name, size, url, digest[1].lower() if digest else "")


def choose(assets: Sequence[Asset], name: str) -> Asset:
    """The file of that name, or the only one whose name holds it.

    Raises:
        CheckpointError: none, or several; lists them.
    """
    if exact := [asset for asset in assets if asset.name == name]:
        return exact[0]
    found = [asset for asset in assets if name.casefold() in asset.name.casefold()]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(asset.name for asset in found)
        raise CheckpointError(f"{name!r} is part of {len(found)} names: {names}. Give more of one")
    names = [asset.name for asset in assets]
    raise CheckpointError(
        f"the release has no file whose name holds {name!r}{did_you_mean(name, names)}. It has "
        f"{', '.join(names) or 'no files'}"
    )
