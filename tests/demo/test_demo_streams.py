"""demo.py with damaged videos, addresses and devices."""

from __future__ import annotations

import functools
import http.server
import json
import threading

import cv2
import pytest
from helpers.demo_run import camera, demo, fails, fakes, frames, run, write_video  # noqa: F401


def cut(video, damage):
    """Damage a video: bytes of its end, or zeros over most of its frames."""
    data = video.read_bytes()
    if damage == "cut":
        return data[: len(data) // 3]
    start, end = len(data) // 5, data.rfind(b"moov") - 4  # the index stays
    return data[:start] + bytes(end - start) + data[end:]


@pytest.mark.parametrize(
    ("code", "name", "damage"),
    [
        ("mp4v", "a.mp4", "zeros"),
        ("MJPG", "a.avi", "cut"),
        ("mp4v", "a.mkv", "cut"),
        ("VP80", "a.webm", "cut"),
    ],
)
def test_a_damaged_video_is_reported(tmp_path, capsys, code, name, damage):
    path = write_video(tmp_path / name, code, 60, 160, 128)
    path.write_bytes(cut(path, damage))
    message = fails(capsys, "--video-input", path, "--json", tmp_path / "o.json", code=1)
    found = json.loads((tmp_path / "o.json").read_text())
    assert 0 < len(found) < 58
    assert f"{path} ends early: 60 frames by its own count, {len(found)} could be read" in message


def test_a_damaged_video_is_drawn_as_far_as_it_goes(tmp_path, capsys):
    path = write_video(tmp_path / "in.avi", "MJPG", 12)
    path.write_bytes(cut(path, "cut"))
    message = fails(capsys, "--video-input", path, "--output", tmp_path / "out.mp4", code=1)
    count = len(frames(tmp_path / "out.mp4")[0])
    assert 0 < count < 12 and f"{count} could be read" in message


@pytest.mark.parametrize(
    ("code", "name"), [("mp4v", "a.mp4"), ("MJPG", "a.avi"), ("mp4v", "a.mkv"), ("VP80", "a.webm")]
)
def test_whole_videos_are_not_reported(tmp_path, capsys, code, name):
    path = write_video(tmp_path / name, code, 7, 160, 128)
    run("--video-input", path, "--json", tmp_path / "o.json")
    assert "7 frames" in capsys.readouterr().out


@pytest.mark.parametrize("total", [0.0, -1.0, -1.9e14, float("nan")])
def test_a_stream_without_a_count_may_end_any_time(tmp_path, monkeypatch, capsys, total):
    address = "rtsp://me:secret@camera.local/live"
    monkeypatch.setattr(cv2, "VideoCapture", camera(address, count=3, total=total))
    run("--video-input", address, "--json", tmp_path / "o.json")
    assert "3 frames, 3 detections" in capsys.readouterr().out
    entries = json.loads((tmp_path / "o.json").read_text())
    assert {entry["file"] for entry in entries} == {"rtsp://camera.local/live"}


def test_an_estimated_count_may_be_off_by_a_little(tmp_path, monkeypatch, capsys):
    """Containers without a list of frames give their duration, from which OpenCV computes it."""
    (tmp_path / "a.webm").write_bytes(b"\x1aE\xdf\xa3 and so on")
    words = ("--video-input", tmp_path / "a.webm", "--json", tmp_path / "o.json")
    source = str(tmp_path / "a.webm")
    monkeypatch.setattr(cv2, "VideoCapture", camera(source, count=98, total=100.0))
    run(*words)
    monkeypatch.setattr(cv2, "VideoCapture", camera(source, count=90, total=100.0))
    assert "ends early" in fails(capsys, *words, code=1)


# Streams and devices


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def address(tmp_path):
    """An address of this machine that serves ``tmp_path``."""
    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_video_by_its_address(tmp_path, address, capsys):
    write_video(tmp_path / "in.mp4", "mp4v", 5)
    run("--video-input", f"{address}/in.mp4", "--output", tmp_path / "out")
    assert "5 frames, 5 detections" in capsys.readouterr().out
    assert len(frames(tmp_path / "out" / "in.mp4")[0]) == 5
    message = fails(capsys, "--video-input", f"{address}/no.mp4", "--output", tmp_path / "out")
    assert message == f"error: OpenCV cannot open --video-input {address}/no.mp4"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("rtsp://me:secret@camera.local:554/live/ch1?x=a:b", "ch1.mp4"),
        ("rtsp://camera.local", "camera.local.mp4"),
        ("http://host/a%3Ab%2F*.avi", "_.mp4"),
        ("/dev/video0", "video0.mp4"),
        ("films/one.two.avi", "one.two.mp4"),
    ],
)
def test_the_name_of_a_drawn_video(tmp_path, source, name):
    assert demo.video_path(source, tmp_path) == tmp_path / name


def test_a_password_is_not_printed(tmp_path, monkeypatch, capsys):
    class Closed:
        def __init__(self, _):
            pass

        def isOpened(self):
            return False

    monkeypatch.setattr(cv2, "VideoCapture", Closed)
    message = fails(
        capsys, "--video-input", "rtsp://me:secret@camera/live", "--json", tmp_path / "o.json"
    )
    assert message == "error: OpenCV cannot open --video-input rtsp://camera/live"


def test_a_device(tmp_path, monkeypatch, capsys):
    """/dev/zero stands for /dev/video0."""
    monkeypatch.setattr(cv2, "VideoCapture", camera("/dev/zero", count=2))
    run("--video-input", "/dev/zero", "--json", tmp_path / "o.json")
    assert "2 frames, 2 detections" in capsys.readouterr().out


def test_ctrl_c_ends_a_stream_and_keeps_what_was_written(tmp_path, monkeypatch, capsys):
    address, real = "rtsp://camera.local/live", cv2.VideoCapture
    endless = camera(address)

    class Interrupted(endless):
        def read(self):
            if self.read_so_far == 4:
                raise KeyboardInterrupt
            return super().read()

    monkeypatch.setattr(
        cv2, "VideoCapture", lambda source: (Interrupted if source == address else real)(source)
    )
    with pytest.raises(SystemExit) as stopped:
        run("--video-input", address, "--output", tmp_path, "--json", tmp_path / "o.json")
    assert stopped.value.code == 130
    assert "4 frames, 4 detections until then" in capsys.readouterr().err
    monkeypatch.undo()
    assert len(json.loads((tmp_path / "o.json").read_text())) == 4
    assert len(frames(tmp_path / "live.mp4")[0]) == 4
