"""demo.py with videos, the webcam and windows."""

from __future__ import annotations

import json
import os

import cv2
import pytest
from helpers.demo_run import (  # noqa: F401
    camera,
    demo,
    fails,
    fakes,
    files,
    frames,
    red_square,
    run,
    write_image,
    write_video,
)

from onenet.api import predict_flags
from onenet.errors import OneNetError


@pytest.fixture
def video(tmp_path):
    return write_video(tmp_path / "in.mp4", "mp4v", 5)


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
    monkeypatch.setattr(predict_flags, "has_display", lambda: True)
    monkeypatch.setattr(cv2, "namedWindow", lambda *_: None)
    monkeypatch.setattr(cv2, "imshow", lambda _, picture: shown.append(picture))
    monkeypatch.setattr(cv2, "waitKey", lambda _: next(keys))
    run("--input", tmp_path)
    assert len(shown) == 2 and shown[0].shape == (512, 640, 3)
    assert shown[0][100, 60].tolist() == [0, 0, 255]  # BGR, as OpenCV shows it


def test_no_window_to_be_had(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise cv2.error("built without windows")

    monkeypatch.setattr(predict_flags, "has_display", lambda: True)
    monkeypatch.setattr(cv2, "namedWindow", refuse)
    source = write_image(tmp_path / "a.png")
    assert "give --output" in fails(capsys, "--input", source)


@pytest.mark.parametrize(("words", "number"), [((), 0), ((0,), 0), ((2,), 2)])
def test_webcam(monkeypatch, capsys, words, number):
    keys = iter([-1, -1, demo.ESCAPE])
    monkeypatch.setattr(predict_flags, "has_display", lambda: True)
    monkeypatch.setattr(cv2, "VideoCapture", camera(number))
    monkeypatch.setattr(cv2, "namedWindow", lambda *_: None)
    monkeypatch.setattr(cv2, "imshow", lambda *_: None)
    monkeypatch.setattr(cv2, "waitKey", lambda _: next(keys))
    run("--webcam", *words)
    assert "3 frames, 3 detections" in capsys.readouterr().out


def test_a_webcam_that_is_not_there(monkeypatch, capsys):
    monkeypatch.setattr(predict_flags, "has_display", lambda: True)
    assert "OpenCV cannot open --webcam 97" in fails(capsys, "--webcam", 97)
    with pytest.raises(SystemExit):
        run("--webcam", "back")
    assert "must be a whole number of at least 0" in capsys.readouterr().err


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
