"""Weights by an address: downloaded once, whole, checked, and with errors that say what to do."""

from __future__ import annotations

import errno
import hashlib
import io
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import pytest
import torch
from helpers.project import ROOT
from helpers.web import serve

from onenet.checkpoints import download as downloads
from onenet.checkpoints import transfer, web
from onenet.checkpoints.download import cache_folder, fetch, file_name
from onenet.errors import CheckpointError

BODY = bytes(range(256)) * 4000
HASH = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def site(monkeypatch, tmp_path):
    """A server with /m.pth, and an empty cache of torch's."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(transfer, "_PAUSE", 0.0)
    with serve() as site:
        site.files["/m.pth"] = BODY
        yield site


def refused(address: str, *args, **options) -> str:
    with pytest.raises(CheckpointError) as error:
        fetch(address, *args, **options)
    return str(error.value)


def test_downloaded_once_into_torchs_cache(site, caplog):
    caplog.set_level(logging.INFO)
    path = fetch(f"{site.url}/m.pth?key=secret")
    assert path.read_bytes() == BODY and path.name == "m.pth"
    assert path.is_relative_to(Path(torch.hub.get_dir()) / "checkpoints")
    assert os.listdir(path.parent) == ["m.pth"]
    assert f"Downloading {site.url}/m.pth to {path}" in caplog.text and "secret" not in caplog.text
    assert fetch(f"{site.url}/m.pth?key=secret") == path and len(site.asked) == 1


def test_a_long_download_shows_its_progress(site, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(transfer, "_LONG", 0)
    monkeypatch.setattr(transfer, "_CHUNK", 100_000)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    fetch(f"{site.url}/m.pth")
    assert "m.pth: 100%" in terminal.getvalue() and "1.02M/1.02M" in terminal.getvalue()


def test_the_cache_without_torch(monkeypatch, tmp_path):
    monkeypatch.delitem(sys.modules, "torch.hub")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "hub" / "checkpoints"
    monkeypatch.delenv("TORCH_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "torch" / "hub" / "checkpoints"


def test_files_of_one_name_are_kept_apart(site):
    site.files["/other/m.pth"] = b"other"
    assert fetch(f"{site.url}/m.pth") != fetch(f"{site.url}/other/m.pth")
    assert fetch(f"{site.url}/m.pth").read_bytes() == BODY


@pytest.mark.parametrize("cuts", [[("cut", 300)], [("cut", 300_000)] * 3])
def test_a_cut_connection_goes_on_where_it_stopped(site, cuts, caplog):
    site.faults["/m.pth"] = list(cuts)
    assert fetch(f"{site.url}/m.pth").read_bytes() == BODY
    ranges = [headers["Range"] for _, headers in site.asked if "Range" in headers]
    assert ranges[-1].startswith("bytes=") and "connection was cut" in caplog.text


def test_a_server_that_says_no_version_starts_again(site):
    site.headers["/m.pth"] = {"ETag": None}
    site.faults["/m.pth"] = [("cut", 300_000)]
    assert fetch(f"{site.url}/m.pth").read_bytes() == BODY
    assert not [headers for _, headers in site.asked if "Range" in headers]


def test_a_server_error_that_passes(site):
    site.faults["/m.pth"] = [("status", 503, {}, b"")] * 2
    assert fetch(f"{site.url}/m.pth").read_bytes() == BODY


def test_a_download_that_never_ends_well_is_no_file_and_goes_on_later(site, tmp_path):
    site.faults["/m.pth"] = [("cut", 300_000)] + [("cut", 0)] * 20
    message = refused(f"{site.url}/m.pth", tmp_path / "a")
    assert f"{site.url}/m.pth could not be downloaded: the connection was cut" in message
    assert "after 300,000 of 1,024,000 bytes" in message and "give its path" in message
    assert not (tmp_path / "a" / "m.pth").exists()
    site.faults.clear()
    assert fetch(f"{site.url}/m.pth", tmp_path / "a").read_bytes() == BODY
    assert site.asked[-1][1]["Range"] == "bytes=300000-"
    assert os.listdir(tmp_path / "a") == ["m.pth"]


def test_a_part_of_another_version_is_not_continued(site, tmp_path):
    site.faults["/m.pth"] = [("cut", 300_000)] + [("cut", 0)] * 20
    refused(f"{site.url}/m.pth", tmp_path)
    site.files["/m.pth"] = BODY[::-1]
    site.faults.clear()
    assert fetch(f"{site.url}/m.pth", tmp_path).read_bytes() == BODY[::-1]
    assert os.listdir(tmp_path) == ["m.pth"]


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ((404, {}, b""), "the server has no such file (404); check the address"),
        ((403, {}, b""), "does not let everybody have it (403 Forbidden)"),
        ((418, {}, b""), "the server answers 418"),
        (
            (403, {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "1700000000"}, b""),
            "limits how often it is asked (403); it takes the next request at ",
        ),
        ((429, {"Retry-After": "60"}, b""), "(429); it takes the next request in 60 s"),
        ((200, {"Content-Type": "text/html; charset=utf-8"}, b"x"), "sends a web page, not a file"),
        ((200, {}, b"\n<!DOCTYPE html><title>Sign in</title>"), "sends a web page, not a file"),
        ((200, {}, b"version https://git-lfs.github.com/spec/v1\n"), "a pointer of Git LFS"),
        ((200, {}, b""), "the file on the server is empty"),
        ((302, {"Location": "file:///etc/passwd"}, b""), "it redirects to file:///etc/passwd"),
        ((302, {"Location": "ftp://host/m.pth"}, b""), "it redirects to ftp://host/m.pth"),
        ((302, {"Location": "/m.pth"}, b""), "its redirects do not end"),
        ((200, {"Content-Length": None}, BODY), "does not say how large the file is"),
    ],
)
def test_what_a_server_does_not_give(site, tmp_path, fault, told):
    site.faults["/m.pth"] = [("status", *fault)] * 20
    site.headers["/m.pth"] = {k: v for k, v in fault[1].items() if v is None}
    message = refused(f"{site.url}/m.pth?key=secret", tmp_path)
    assert f"{site.url}/m.pth could not be downloaded: " in message and told in message
    assert "give its path" in message and "secret" not in message
    assert not (tmp_path / "m.pth").exists()


def test_from_https_to_http_is_not_followed(monkeypatch):
    request = urllib.request.Request("https://host/m.pth")
    redirects = web._Redirects()
    args = (None, 302, "Found", {})
    assert redirects.redirect_request(request, *args, "https://other/m.pth").host == "other"
    with pytest.raises(urllib.request.HTTPError):
        redirects.redirect_request(request, *args, "http://host/m.pth")


def test_a_redirect_takes_no_token_along(site):
    site.faults["/a"] = [("status", 302, {"Location": f"{site.url}/m.pth"}, b"")]
    web.get(f"{site.url}/a", {"Authorization": "Bearer t"}, way_out="")
    assert [headers.get("Authorization") for _, headers in site.asked] == ["Bearer t", None]
    site.faults["/a"] = [("status", 401, {}, b"")]
    with pytest.raises(CheckpointError, match="does not accept the token"):
        web.get(f"{site.url}/a", {"Authorization": "Bearer t"}, way_out="")


def test_a_hash_that_the_user_gives(site):
    path = fetch(f"{site.url}/m.pth#sha256={HASH.upper()}")
    assert path.read_bytes() == BODY
    path.write_bytes(b"changed")
    assert fetch(f"{site.url}/m.pth#sha256={HASH}").read_bytes() == BODY
    wrong = "0" * 64
    message = refused(f"{site.url}/m.pth#sha256={wrong}")
    assert f"SHA-256 should be {wrong}, and is {HASH}" in message and f"#sha256={HASH}" in message
    assert path.read_bytes() == BODY, "what was there stays"


def test_a_hash_in_the_name_as_torch_writes_it(site):
    good, bad = f"/m-{HASH[:8]}.pth", "/m-01234567.pth"
    site.files |= {good: BODY, bad: BODY}
    assert fetch(site.url + good) == cache_folder() / good[1:]
    message = refused(site.url + bad)
    assert f"should begin, as the name ends, with 01234567, and is {HASH}" in message
    assert not (cache_folder() / bad[1:]).exists()
    assert fetch(f"{site.url}{bad}#sha256={HASH}").read_bytes() == BODY


def test_a_date_in_a_name_is_no_hash(site):
    site.files["/m-20201210.pth"] = BODY
    assert fetch(f"{site.url}/m-20201210.pth").read_bytes() == BODY


@pytest.mark.parametrize("known", [{"size": 5}, {"size": len(BODY), "sha256": "0" * 64}])
def test_another_size_or_hash_than_known(site, tmp_path, known):
    message = refused(f"{site.url}/m.pth", tmp_path, **known)
    assert "1,024,000 bytes instead of 5" in message or "should be 000000" in message
    assert {path.suffix for path in tmp_path.iterdir() if path.is_file()} <= {".lock"}


def test_a_file_of_the_users_is_not_replaced(site, tmp_path):
    (tmp_path / "m.pth").write_bytes(b"mine")
    message = refused(f"{site.url}/m.pth", tmp_path, size=len(BODY))
    assert f"{tmp_path / 'm.pth'} is there already" in message and "move it" in message
    assert (tmp_path / "m.pth").read_bytes() == b"mine" and not site.asked


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("http://host/", "names no file"),
        ("http://host/m.pth#sha256=12", "expected sha256= and 64 hexadecimal digits, got 'sha256"),
        ("http://host/m.pth#readme", "got 'readme'"),
        ("http://user:secret@host/m.pth", "holds a user name or password"),
        ("http:///m.pth", "the address is wrong"),
        ("http://host:port/m.pth", "the address is wrong"),
    ],
)
def test_wrong_addresses(site, address, told):
    message = refused(address)
    assert told in message and "secret" not in message


def test_no_network(monkeypatch, site):
    def fail(*_, **__):
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    message = refused("https://host/m.pth")
    assert "https://host/m.pth could not be downloaded: no answer from the server" in message
    assert "name resolution" in message and "elsewhere and give its path" in message


def test_a_proxy_of_the_environment(site, monkeypatch):
    """The loopback serves as a proxy, which gets the whole address."""
    site.files["http://host.invalid/m.pth"] = BODY
    monkeypatch.setenv("http_proxy", site.url)
    assert fetch("http://host.invalid/m.pth").read_bytes() == BODY
    monkeypatch.setenv("http_proxy", "http://user:secret@127.0.0.1:1")
    message = refused("http://host.invalid/n.pth")
    assert "through the proxy http://127.0.0.1:1 (" in message and "secret" not in message


def test_names_are_made_safe():
    assert file_name("https://h/a%2F..%2f..%5Cm%20x:1.pth?n=1#y") == "a_.._.._m_x_1.pth"
    assert file_name("https://h/a/..") == "" and file_name("https://h/.hidden.pth") == "hidden.pth"


def test_a_folder_without_room_or_rights(site, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 0))
    message = refused(f"{site.url}/m.pth")
    assert "cannot be written (1,024,000 bytes to come, 0 free). Make room" in message
    assert "TORCH_HOME" in message

    def denied(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", denied)
    assert "cannot be written (Permission denied)" in refused(f"{site.url}/m.pth", tmp_path / "a")


def test_threads_download_a_file_once(site):
    got = []
    threads = [
        threading.Thread(target=lambda: got.append(fetch(f"{site.url}/m.pth"))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 4 and len(set(got)) == 1 and len(site.asked) == 1


FETCH = "import sys; from onenet.checkpoints.download import fetch; print(fetch(sys.argv[1]))"


def test_processes_download_a_file_once(site):
    """They wait for each other; none needs torch."""
    code = f"import sys; sys.modules['torch'] = None; {FETCH}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, f"{site.url}/m.pth"],
            env={**os.environ, "PYTHONPATH": str(ROOT / "projects" / "OneNet")},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    paths = {process.communicate(timeout=60)[0].strip() for process in processes}
    assert len(paths) == 1 and Path(paths.pop()).read_bytes() == BODY and len(site.asked) == 1


def test_another_process_that_downloads_is_waited_for(site, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    answers = [False, False, True]
    monkeypatch.setattr(downloads, "lock_file", lambda file: answers.pop(0))
    monkeypatch.setattr(downloads, "_WAIT", 0.0)
    assert fetch(f"{site.url}/m.pth", tmp_path).is_file() and not answers
    assert "Another process downloads" in caplog.text
