"""The demo's command line, with a predictor that finds the bright part of an image."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch
from conftest import load_script

from onenet.engine import predictor
from onenet.structures import Detections

demo = load_script("demo/demo.py")


class BrightPart:
    """One sure detection, the image's bright pixels, and an unsure one, all of it."""

    class_names = ["square", "circle"]

    def __init__(self, cfg):
        self.cfg = cfg

    def __call__(self, image):
        assert image.dtype == np.uint8 and image.shape[2] == 3
        rows, columns = np.nonzero(image[..., 0] > 150)  # red: the first channel
        if len(rows) == 0:
            return Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
        sure = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        unsure = [0, 0, image.shape[1], image.shape[0]]
        boxes = torch.tensor(np.array([sure, unsure]), dtype=torch.float32)
        return Detections(boxes, torch.tensor([0.9, 0.35]), torch.tensor([1, 0]))


@pytest.fixture(autouse=True)
def fakes(monkeypatch):
    monkeypatch.setattr(predictor, "build_predictor", lambda *both: BrightPart(both))
    monkeypatch.setattr(demo, "choose_engine", lambda name: ("onenet.engine", name))
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)


def red_square(x=20, width=640, height=512):
    image = np.zeros((height, width, 3), np.uint8)  # BGR
    image[40:140, x : x + 80, 2] = 255
    return image


def write_image(path, image=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), red_square() if image is None else image)
    return path


def run(*arguments):
    demo.main(["--config-file", "c.yaml", *map(str, arguments)])


def fails(capsys, *arguments, code=2):
    """The one line that a run ends with."""
    with pytest.raises(SystemExit) as stopped:
        run(*arguments)
    error = capsys.readouterr().err.strip()
    assert stopped.value.code == code and "Traceback" not in error
    return error.splitlines()[-1]


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_one_image_to_a_file(tmp_path, capsys):
    source = write_image(tmp_path / "a.png")
    run("--input", source, "--output", tmp_path / "new/deep/b.png")
    picture, before = cv2.imread(str(tmp_path / "new/deep/b.png")), red_square()
    assert picture.shape == before.shape
    assert (picture[40, 30:90] != before[40, 30:90]).any(axis=1).all()  # the box's upper line
    assert np.array_equal(picture[200:, 200:], before[200:, 200:])
    out = capsys.readouterr().out
    assert "1 image, 1 detection" in out and "b.png" in out


def test_a_picture_has_its_colors(tmp_path):
    source = write_image(tmp_path / "a.png")
    run("--input", source, "--output", tmp_path / "b.png", "--confidence-threshold", 1)
    assert np.array_equal(cv2.imread(str(tmp_path / "b.png")), red_square())


def test_small_images_are_drawn_enlarged_and_reported_in_their_pixels(tmp_path):
    image = np.zeros((100, 128, 3), np.uint8)
    image[10:40, 20:60] = 255
    source = write_image(tmp_path / "a.png", image)
    run("--input", source, "--output", tmp_path / "o", "--json", tmp_path / "a.json")
    assert cv2.imread(str(tmp_path / "o/a.png")).shape == (400, 512, 3)
    (entry,) = json.loads((tmp_path / "a.json").read_text())
    assert (entry["width"], entry["height"]) == (128, 100)
    assert entry["detections"][0]["box"] == [20, 10, 60, 40]


def test_a_folder_keeps_its_structure(tmp_path):
    for name in ("x.png", "one/x.png", "one/two/x.jpg", "three/y.JPG", "gif/z.gif"):
        write_image(tmp_path / "in" / name)
    (tmp_path / "in/notes.txt").write_text("no image")
    run("--input", tmp_path / "in", "--output", tmp_path / "out")
    assert files(tmp_path / "out") == [
        "gif/z.gif.png", "one/two/x.jpg", "one/x.png", "three/y.JPG", "x.png",
    ]  # fmt: skip


def test_an_output_inside_the_input_is_not_read_again(tmp_path, capsys):
    write_image(tmp_path / "a.png")
    for _ in range(2):
        run("--input", tmp_path, "--output", tmp_path / "out")
        assert "1 image," in capsys.readouterr().out
    assert files(tmp_path) == ["a.png", "out/a.png"]


def test_same_names_of_several_inputs_do_not_collide(tmp_path):
    a, b = write_image(tmp_path / "a/x.png"), write_image(tmp_path / "b/x.png")
    write_image(tmp_path / "c/d/x.png")
    run("--input", a, b, tmp_path / "c", "--output", tmp_path / "out")
    assert files(tmp_path / "out") == ["a/x.png", "b/x.png", "c/d/x.png"]


def test_an_image_given_twice_is_taken_once(tmp_path, capsys):
    source = write_image(tmp_path / "x.png")
    run("--input", source, tmp_path, tmp_path / "*.png", "--output", tmp_path / "out")
    assert "1 image," in capsys.readouterr().out


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.png", ["x.png"]),
        ("*", ["x.png", "y.jpg"]),
        ("**/*.jpg", ["sub/z.jpg", "y.jpg"]),
        ("s?b/*", ["sub/z.jpg"]),
    ],
)
def test_globs(tmp_path, pattern, expected):
    for name in ("x.png", "y.jpg", "sub/z.jpg"):
        write_image(tmp_path / "in" / name)
    (tmp_path / "in/readme.md").write_text("")
    run("--input", tmp_path / "in" / pattern, "--output", tmp_path / "out")
    assert files(tmp_path / "out") == expected


def test_a_file_whose_name_looks_like_a_glob(tmp_path):
    source = write_image(tmp_path / "a[1].png")
    run("--input", source, "--output", tmp_path / "out")
    assert files(tmp_path / "out") == ["a[1].png"]


def test_relative_paths(tmp_path, monkeypatch):
    write_image(tmp_path / "in/a.png")
    monkeypatch.chdir(tmp_path)
    run("--input", "in", "--output", "out", "--json", "found/a.json")
    assert files(tmp_path) == ["found/a.json", "in/a.png", "out/a.png"]
    assert json.loads((tmp_path / "found/a.json").read_text())[0]["file"] == "in/a.png"


def test_json(tmp_path, capsys):
    first = write_image(tmp_path / "a.png")
    second = write_image(tmp_path / "b.png", np.zeros((30, 50, 3), np.uint8))
    run("--input", first, second, "--json", tmp_path / "sub/out.json")
    assert json.loads((tmp_path / "sub/out.json").read_text()) == [
        {
            "file": str(first),
            "width": 640,
            "height": 512,
            "detections": [
                {"class": "circle", "label": 1, "score": 0.9, "box": [20.0, 40.0, 100.0, 140.0]}
            ],
        },
        {"file": str(second), "width": 50, "height": 30, "detections": []},
    ]
    assert "2 images, 1 detection" in capsys.readouterr().out
    assert files(tmp_path) == ["a.png", "b.png", "sub/out.json"]


@pytest.mark.parametrize(("threshold", "count"), [(0.2, 2), (0.4, 1), (0.95, 0)])
def test_threshold(tmp_path, threshold, count):
    source = write_image(tmp_path / "a.png")
    run("--input", source, "--json", tmp_path / "o.json", "--confidence-threshold", threshold)
    assert len(json.loads((tmp_path / "o.json").read_text())[0]["detections"]) == count


def test_config_and_overrides_reach_the_model(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        predictor, "build_predictor", lambda *both: seen.append(both) or BrightPart(both)
    )
    source = write_image(tmp_path / "a.png")
    run("--input", source, "--output", tmp_path / "o", "--opts", "MODEL.WEIGHTS", "m.pth")
    assert seen == [("c.yaml", ["MODEL.WEIGHTS", "m.pth"])]


def test_a_broken_image_is_reported_and_the_rest_is_done(tmp_path, capsys):
    write_image(tmp_path / "in/a.png")
    (tmp_path / "in/b.png").write_bytes(b"not an image")
    write_image(tmp_path / "in/c.png")
    with pytest.raises(SystemExit) as stopped:
        run("--input", tmp_path / "in", "--output", tmp_path / "out", "--json", tmp_path / "o.json")
    captured = capsys.readouterr()
    assert stopped.value.code == 1
    assert "b.png" in captured.err and "1 of 3 images could not be read" in captured.err
    assert "2 images, 2 detections" in captured.out
    assert files(tmp_path / "out") == ["a.png", "c.png"]
    assert len(json.loads((tmp_path / "o.json").read_text())) == 2


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
    # The first class but one is not red: the square's outline has changed, its inside not.
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


def test_wrong_combinations(tmp_path, capsys):
    image = write_image(tmp_path / "a.png")
    assert "one of --input" in fails(capsys, "--output", tmp_path / "o")
    both = ("--input", image, "--video-input", image, "--output", tmp_path / "o")
    assert "one of --input" in fails(capsys, *both)
    assert "--webcam" in fails(capsys, "--webcam", "--output", tmp_path / "o")
    assert "no display" in fails(capsys, "--input", image)
    assert "no display" in fails(capsys, "--webcam")
    out = ("--input", image, "--output", tmp_path / "o")
    assert "1.5" in fails(capsys, *out, "--confidence-threshold", 1.5)
    assert "is a folder" in fails(capsys, *out, "--json", tmp_path)
    assert files(tmp_path) == ["a.png"]


def test_wrong_inputs(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    out = ("--output", tmp_path / "o")
    assert "nothing.png does not exist" in fails(capsys, "--input", tmp_path / "nothing.png", *out)
    assert "matches no image" in fails(capsys, "--input", tmp_path / "empty", *out)
    assert "matches no image" in fails(capsys, "--input", tmp_path / "*.png", *out)


def test_wrong_outputs(tmp_path, capsys):
    a, b = write_image(tmp_path / "in/a.png"), write_image(tmp_path / "in/b.png")
    before = a.read_bytes()
    assert "one file for 2 images" in fails(capsys, "--input", a, b, "--output", tmp_path / "o.png")
    assert "overwrite the input" in fails(capsys, "--input", a, "--output", a)
    assert "overwrite the input" in fails(capsys, "--input", tmp_path / "in", "--output", a.parent)
    (tmp_path / "file").write_text("")
    assert "neither" in fails(capsys, "--input", a, "--output", tmp_path / "file")
    assert str(tmp_path / "file") in fails(capsys, "--input", a, "--output", tmp_path / "file/sub")
    assert a.read_bytes() == before


@pytest.mark.parametrize("kind", [ValueError, FileNotFoundError])
def test_what_the_model_says_is_one_line(tmp_path, monkeypatch, capsys, kind):
    def refuse(file, opts):
        raise kind("MODEL.WEIGHTS is empty: give a checkpoint")

    monkeypatch.setattr(predictor, "build_predictor", refuse)
    source = write_image(tmp_path / "a.png")
    assert "MODEL.WEIGHTS is empty" in fails(capsys, "--input", source, "--output", tmp_path / "o")


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
