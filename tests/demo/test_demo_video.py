"""demo.py with videos, the webcam and windows."""

from __future__ import annotations

import functools
import http.server
import json
import os
import threading

import cv2
import numpy as np
import pytest
from helpers.demo_run import demo, fails, fakes, files, red_square, run, write_image  # noqa: F401

from onenet.errors import OneNetError


def write_video(path, code, count, width=640, height=512):
    """A video of a red square that moves, before a background that moves."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*code), 12.5, (width, height))
    if not writer.isOpened():
        pytest.skip(f"this OpenCV writes no {code}")
    noise = np.random.default_rng(0).integers(0, 60, (8, 10, 3), np.uint8)
    noise = cv2.resize(noise, (width, height))
    for k in range(count):
        frame = red_square(20 + 40 * k % (width - 100), width, height)
        writer.write(np.where(frame.any(axis=2, keepdims=True), frame, np.roll(noise, 9 * k, 1)))
    writer.release()
    return path


@pytest.fixture
def video(tmp_path):
    return write_video(tmp_path / "in.mp4", "mp4v", 5)


def frames(path):
    capture = cv2.VideoCapture(str(path))
    return list(demo.Video(str(path)).frames()), capture.get(cv2.CAP_PROP_FPS)


@pytest.mark.parametrize("output", ["out/drawn.mp4", "out"])
def test_video(tmp_path, video, capsys, output):
    run("--video-input", video, "--output", tmp_path / output, "--json", tmp_path / "o.json")
    written, fps = frames(tmp_path / ("out/in.mp4" if output == "out" else output))
    assert len(written) == 5 and fps == pytest.approx(12.5)
    assert written[0].shape == (512, 640, 3)
    # The second class is not drawn in red: the square's outline has changed, its inside has not.
    red = written[0][90, 60].astype(int)
    assert red[0] > 180 and red[1] < 70
    assert written[0][90, 20].astype(int)[1] > 80
    entries = json.loads((tmp_path / "o.json").read_text())
    assert [e["frame"] for e in entries] == [0, 1, 2, 3, 4]
    assert entries[0]["file"] == str(video) and (entries[0]["width"], entries[0]["height"]) == (
        640,
        512,
    )
    for k, entry in enumerate(entries):
        assert entry["detections"][0]["box"][0] == pytest.approx(20 + 40 * k, abs=3)
    assert "5 frames, 5 detections" in capsys.readouterr().out


def test_video_to_json_only(tmp_path, video):
    run("--video-input", video, "--json", tmp_path / "o.json")
    assert files(tmp_path) == ["in.mp4", "o.json"]


def test_video_errors(tmp_path, video, capsys):
    before = video.read_bytes()
    assert "overwrite the input" in fails(capsys, "--video-input", video, "--output", video)
    assert "overwrite the input" in fails(capsys, "--video-input", video, "--output", tmp_path)
    assert ".mp4" in fails(capsys, "--video-input", video, "--output", tmp_path / "o.avi")
    assert "is not a file" in fails(capsys, "--video-input", tmp_path / "no.mp4", "--output", "o")
    (tmp_path / "text.mp4").write_text("no video")
    error = fails(capsys, "--video-input", tmp_path / "text.mp4", "--output", tmp_path / "o")
    assert "text.mp4" in error
    assert video.read_bytes() == before


def test_without_output_pictures_are_shown_until_escape(tmp_path, monkeypatch, capsys):
    for name in ("a.png", "b.png", "c.png"):
        write_image(tmp_path / name)
    shown, keys = [], iter([-1, demo.ESCAPE])
    monkeypatch.setattr(demo, "has_display", lambda: True)
    monkeypatch.setattr(cv2, "namedWindow", lambda *_: None)
    monkeypatch.setattr(cv2, "imshow", lambda _, picture: shown.append(picture))
    monkeypatch.setattr(cv2, "waitKey", lambda _: next(keys))
    run("--input", tmp_path)
    assert len(shown) == 2 and shown[0].shape == (512, 640, 3)
    assert shown[0][100, 60].tolist() == [0, 0, 255]  # BGR, as OpenCV shows it


def test_no_window_to_be_had(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise cv2.error("built without windows")

    monkeypatch.setattr(demo, "has_display", lambda: True)
    monkeypatch.setattr(cv2, "namedWindow", refuse)
    source = write_image(tmp_path / "a.png")
    assert "give --output" in fails(capsys, "--input", source)


def camera(source, count=10**9, sizes=((512, 640),), total=-1.0):
    """A class like ``cv2.VideoCapture`` that expects a source and gives ``count`` frames."""

    class Camera:
        def __init__(self, opened):
            assert opened == source
            self.read_so_far = 0

        def isOpened(self):
            return True

        def get(self, name):
            return total if name == cv2.CAP_PROP_FRAME_COUNT else float("nan")

        def read(self):
            self.read_so_far += 1
            height, width = sizes[self.read_so_far % len(sizes)]
            more = self.read_so_far <= count
            return more, red_square(width=width, height=height) if more else None

        def release(self):
            pass

    return Camera


@pytest.mark.parametrize(("words", "number"), [((), 0), ((0,), 0), ((2,), 2)])
def test_webcam(monkeypatch, capsys, words, number):
    keys = iter([-1, -1, demo.ESCAPE])
    monkeypatch.setattr(demo, "has_display", lambda: True)
    monkeypatch.setattr(cv2, "VideoCapture", camera(number))
    monkeypatch.setattr(cv2, "namedWindow", lambda *_: None)
    monkeypatch.setattr(cv2, "imshow", lambda *_: None)
    monkeypatch.setattr(cv2, "waitKey", lambda _: next(keys))
    run("--webcam", *words)
    assert "3 frames, 3 detections" in capsys.readouterr().out


def test_a_webcam_that_is_not_there(monkeypatch, capsys):
    monkeypatch.setattr(demo, "has_display", lambda: True)
    assert "OpenCV cannot open --webcam 97" in fails(capsys, "--webcam", 97)
    with pytest.raises(SystemExit):
        run("--webcam", "back")
    assert "must be a whole number of at least 0" in capsys.readouterr().err


# Damaged videos


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


def test_a_video_by_its_address(tmp_path, video, address, capsys):
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


# Written videos


class FakeWriter:
    """Stands for a ``cv2.VideoWriter`` whose build has some codecs."""

    has: tuple[str, ...] = ()
    tried: list[str] = []

    def __init__(self, path, code, fps, size):
        name = "".join(chr(code >> shift & 255) for shift in (0, 8, 16, 24))
        FakeWriter.tried.append(name)
        self.opened = name in self.has
        os.write(2, f"[{name}] Could not find a valid device\n".encode())

    def isOpened(self):
        return self.opened

    def release(self):
        pass


@pytest.mark.parametrize(
    ("has", "taken", "said"),
    [
        (("avc1", "vp09", "mp4v"), "avc1", ""),
        (("vp09", "mp4v"), "vp09", "a.mp4 is VP9, since this OpenCV cannot write H.264. Browsers"),
        (("mp4v",), "mp4v", "a.mp4 is MPEG-4 Part 2, since this OpenCV cannot write H.264. VLC"),
    ],
)
def test_browsers_play_what_is_written_if_this_opencv_can(
    tmp_path, monkeypatch, capfd, has, taken, said
):
    monkeypatch.setattr(cv2, "VideoWriter", FakeWriter)
    monkeypatch.setattr(FakeWriter, "has", has)
    monkeypatch.setattr(FakeWriter, "tried", [])
    demo.Writer(tmp_path / "a.mp4", 25.0, (32, 32))
    assert FakeWriter.tried[-1] == taken
    error = capfd.readouterr().err
    assert said in error and ("browsers do not" in error) == (taken == "mp4v")
    assert not error if taken == "avc1" else "valid device" not in error


def test_no_codec_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(cv2, "VideoWriter", FakeWriter)
    monkeypatch.setattr(FakeWriter, "has", ())
    with pytest.raises(OneNetError, match="OpenCV cannot write the video .*a.mp4"):
        demo.Writer(tmp_path / "a.mp4", 25.0, (32, 32))


def test_frames_of_other_sizes_are_drawn_at_the_size_of_the_first(tmp_path, monkeypatch):
    """OpenCV's writer leaves them out without a word."""
    address, real = "http://camera/live", cv2.VideoCapture
    sizes = ((512, 640), (600, 800), (513, 641))
    fake = camera(address, count=4, sizes=sizes)
    monkeypatch.setattr(
        cv2, "VideoCapture", lambda source: (fake if source == address else real)(source)
    )
    run("--video-input", address, "--output", tmp_path / "out.mp4")
    monkeypatch.undo()
    assert len(frames(tmp_path / "out.mp4")[0]) == 4


def test_a_video_that_lacks_frames_is_reported(tmp_path, video, monkeypatch, capsys):
    """As on a full disk, which OpenCV's writer does not report."""
    write = demo.Writer.write

    class Full:
        def __init__(self, writer):
            self.writer, self.left = writer, 3

        def write(self, frame):
            self.left -= 1
            if self.left >= 0:
                self.writer.write(frame)

        def release(self):
            self.writer.release()

    def fill(self, picture):
        if not isinstance(self._writer, Full):
            self._writer = Full(self._writer)
        write(self, picture)

    monkeypatch.setattr(demo.Writer, "write", fill)
    message = fails(capsys, "--video-input", video, "--output", tmp_path / "o.mp4", code=1)
    assert "o.mp4 could not be written: it holds 3 of 5 frames" in message


def test_a_video_over_an_input(tmp_path, video, capsys):
    before = video.read_bytes()
    os.link(video, tmp_path / "hard.mp4")
    (tmp_path / "soft.mp4").symlink_to(video)
    for words in (("--output", "hard.mp4"), ("--output", "soft.mp4"), ("--json", "in.mp4")):
        flag, name = words
        message = fails(capsys, "--video-input", video, flag, tmp_path / name)
        assert "overwrite the input" in message
    same = ("--output", tmp_path / "o.mp4", "--json", tmp_path / "o.mp4")
    assert "one file" in fails(capsys, "--video-input", video, *same)
    assert video.read_bytes() == before
