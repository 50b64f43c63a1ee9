"""demo.py with videos, the webcam and windows."""

from __future__ import annotations

import json

import cv2
import pytest
from helpers.demo_run import demo, fails, fakes, files, red_square, run, write_image  # noqa: F401


@pytest.fixture
def video(tmp_path):
    path = tmp_path / "in.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 12.5, (640, 512))
    if not writer.isOpened():
        pytest.skip("this OpenCV writes no mp4")
    for k in range(5):
        writer.write(red_square(x=20 + 40 * k))
    writer.release()
    return path


def frames(path):
    capture = cv2.VideoCapture(str(path))
    return list(demo.read_frames(capture)), capture.get(cv2.CAP_PROP_FPS)


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


def test_webcam(monkeypatch, capsys):
    class Camera:
        def __init__(self, source):
            assert source == 0

        def isOpened(self):
            return True

        def get(self, _):
            return -1.0

        def read(self):
            return True, red_square()

        def release(self):
            pass

    keys = iter([-1, -1, demo.ESCAPE])
    monkeypatch.setattr(demo, "has_display", lambda: True)
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    monkeypatch.setattr(cv2, "namedWindow", lambda *_: None)
    monkeypatch.setattr(cv2, "imshow", lambda *_: None)
    monkeypatch.setattr(cv2, "waitKey", lambda _: next(keys))
    run("--webcam")
    assert "3 frames, 3 detections" in capsys.readouterr().out
