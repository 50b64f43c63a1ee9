"""Requests over HTTP: safe redirects, proxies, and errors that name the way out; no torch.

Proxies are those of the environment (``https_proxy``, ``no_proxy``, …), as urllib reads them.
"""

from __future__ import annotations

import http.client
import urllib.request
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit, urlunsplit

from onenet.errors import CheckpointError

ELSEWHERE = "Download the file elsewhere and give its path"
TIMEOUT = 30  # s without a byte
SCHEMES = ("http", "https")
_SAFE = "%/:?&=+,;@!$'()*~[]-._"  # what quoting leaves as it is
_MOST = 8 << 20  # bytes of an answer that is read into memory


class Interrupted(Exception):
    """A request or transfer failed in a way that may pass; the text says how.

    Attributes:
        connected: whether the server had answered.
        received: bytes of the file that are here.
    """

    def __init__(self, reason: str, *, connected: bool, received: int = 0) -> None:
        super().__init__(reason)
        self.connected = connected
        self.received = received


def is_url(text: str) -> bool:
    """Whether a text is an ``http://`` or ``https://`` address."""
    return text.partition("://")[0].lower() in SCHEMES and "://" in text


def shown(url: str) -> str:
    """An address for messages: without user, password, query and fragment, which may be secret."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return quote(urlunsplit((parts.scheme, host, parts.path, "", "")), safe=_SAFE)


def failure(url: str, reason: str, way_out: str = ELSEWHERE) -> CheckpointError:
    """The error of an address that cannot be downloaded."""
    return CheckpointError(f"{shown(url)} could not be downloaded: {reason}. {way_out}")


def words(error: object) -> str:
    """What went wrong, without the number of an ``OSError``."""
    return str(getattr(error, "strerror", None) or error) or type(error).__name__


def open_url(
    url: str, headers: Mapping[str, str] | None = None, *, way_out: str = ELSEWHERE
) -> http.client.HTTPResponse:
    """Ask a server for what an address names, and follow its redirects.

    Args:
        url: an ``http(s)`` address.
        headers: more of the request. ``Authorization`` goes to that server only, never to one that
            it redirects to.
        way_out: the sentence that ends an error's message.

    Raises:
        CheckpointError: the server refuses the request, or the address is wrong.
        Interrupted: no connection, or an error of the server that may pass.
    """
    try:
        parts = urlsplit(url)
        if "@" in parts.netloc:
            raise failure(url, "the address holds a user name or password", way_out)
        if not parts.hostname:
            raise ValueError("it names no host")
        request = urllib.request.Request(quote(url, safe=_SAFE))
        request.add_header("User-Agent", "onenet")
        for name, value in (headers or {}).items():
            request.add_unredirected_header(name, value)
        opener = urllib.request.build_opener(_Redirects)
        return opener.open(request, timeout=TIMEOUT)
    except HTTPError as error:
        with error:
            if error.code >= 500:
                text = f"the server answers {error.code} {error.reason}"
                raise Interrupted(text, connected=True) from error
            if error.code == 401 and "Authorization" in (headers or {}):
                raise failure(url, "the server does not accept the token (401)", way_out) from error
            raise failure(url, _refusal(error), way_out) from error
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, http.client.InvalidURL):
            raise failure(url, f"the address is wrong ({error})", way_out) from error
        reason = error.reason if isinstance(error, URLError) else error
        raise Interrupted(
            f"no answer from the server{_proxy(url)} ({words(reason)})",
            connected=not isinstance(error, URLError),
        ) from error
    except ValueError as error:  # no host, a port that is no number, letters that no host has
        raise failure(url, f"the address is wrong ({error})", way_out) from error


def get(url: str, headers: Mapping[str, str], *, way_out: str) -> bytes:
    """The short answer of a server, at most 8 MiB; raises CheckpointError, see :func:`open_url`."""
    try:
        with open_url(url, headers, way_out=way_out) as response:
            return response.read(_MOST)
    except Interrupted as cut:
        raise failure(url, str(cut), way_out) from cut
    except (OSError, http.client.HTTPException) as error:
        text = f"the connection was cut ({words(error)})"
        raise failure(url, text, way_out) from error


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to HTTP, and from HTTPS to HTTPS alone."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str):
        if _leads_away(req.full_url, newurl):
            raise HTTPError(req.full_url, code, msg, headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _leads_away(url: str, target: str) -> bool:
    old, new = (urlsplit(one).scheme.lower() for one in (url, target))
    return new not in ("", *SCHEMES) or (old == "https" and new == "http")


def _refusal(error: HTTPError) -> str:
    """Why a server does not give what was asked for."""
    code, headers = error.code, error.headers
    if 300 <= code < 400 and (target := headers.get("Location")):
        if _leads_away(error.url, target):
            return (
                f"it redirects to {shown(target)}, and only redirects to http and https are "
                "followed, from https to https alone"
            )
        return "its redirects do not end"
    if code == 429 or headers.get("x-ratelimit-remaining") == "0" or "Retry-After" in headers:
        return f"the server limits how often it is asked ({code}){_again(headers)}"
    if code in (404, 410):
        return f"the server has no such file ({code}); check the address"
    if code in (401, 403, 407):
        return f"the server does not let everybody have it ({code} {error.reason})"
    return f"the server answers {code} {error.reason}"


def _again(headers: Mapping[str, str]) -> str:
    """When a server that limits requests takes the next."""
    seconds, at = headers.get("Retry-After", ""), headers.get("x-ratelimit-reset", "")
    if seconds.isdecimal():
        return f"; it takes the next request in {seconds} s"
    if at.isdecimal() and len(at) < 12:
        return f"; it takes the next request at {datetime.fromtimestamp(int(at)):%H:%M}"
    return ""


def _proxy(url: str) -> str:
    parts = urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme.lower())
    if not proxy or urllib.request.proxy_bypass(parts.hostname or ""):
        return ""
    return f" through the proxy {shown(proxy) if '://' in proxy else proxy.rpartition('@')[2]}"
