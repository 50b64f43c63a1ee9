"""A server on the loopback that holds files and breaks in the ways that servers on the net do."""

from __future__ import annotations

import hashlib
import http.server
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Site:
    """What a server holds and does.

    Attributes:
        url: its address, without a slash at its end.
        files: contents by path.
        faults: by path, what to do in place of the next answers: ``("cut", n)`` ends the connection
            after n bytes of a body, ``("status", code, headers, body)`` answers so.
        headers: by path, headers to send; ``None`` as a value leaves one of the server's own out.
        asked: the path and the headers of each request.
    """

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, list[tuple]] = field(default_factory=dict)
    headers: dict[str, dict[str, str | None]] = field(default_factory=dict)
    asked: list[tuple[str, Any]] = field(default_factory=list)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: Site

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        site, path = self.site, self.path.partition("?")[0]
        site.asked.append((self.path, dict(self.headers)))
        fault = site.faults[path].pop(0) if site.faults.get(path) else ("", None)
        if fault[0] == "status":
            _, code, headers, body = fault
            return self.answer(code, body, headers)
        if path not in site.files:
            return self.answer(404, b"Not Found", {})
        body = site.files[path]
        etag = f'"{hashlib.md5(body).hexdigest()}"'
        headers = {"ETag": etag, "Content-Type": "application/octet-stream"}
        code, start = 200, 0
        if "Range" in self.headers and self.headers["If-Range"] == etag:
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            code = 206
        self.answer(code, body[start:], headers, fault[1] if fault[0] == "cut" else None)

    def answer(
        self, code: int, body: bytes, headers: dict[str, str], cut: int | None = None
    ) -> None:
        headers = {"Content-Length": str(len(body)), **headers}
        headers |= self.site.headers.get(self.path.partition("?")[0], {})
        self.send_response(code)
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        with suppress(ConnectionError):  # a client that has read enough
            self.wfile.write(body if cut is None else body[:cut])
        self.close_connection = cut is not None or "Content-Length" not in headers
        self.close_connection |= headers["Content-Length"] is None


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a client that has read enough
            super().handle_error(request, client_address)


@contextmanager
def serve() -> Iterator[Site]:
    """Run a server for the time of the context; it holds nothing at first."""
    site = Site()
    handler = type("Handler", (_Handler,), {"site": site})
    with _Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        site.url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield site
        finally:
            server.shutdown()
            thread.join()
