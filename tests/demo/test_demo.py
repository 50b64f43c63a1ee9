"""demo.py on images: what it reads, writes and refuses."""

from __future__ import annotations

import json
import os

import cv2
import numpy as np
import pytest
from helpers.demo_run import BrightPart, fails, fakes, files, red_square, run, write_image  # noqa: F401

from onenet.lightning import predictor


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


def test_images_are_detected_in_several_at_a_time(tmp_path, monkeypatch):
    counts, detect = [], BrightPart.predict_batch
    monkeypatch.setattr(
        BrightPart, "predict_batch", lambda self, images: counts.append(len(images))
        or detect(self, images),
    )  # fmt: skip
    for k in range(5):
        write_image(tmp_path / f"in/{k}.png", red_square(x=20 * k))
    run("--input", tmp_path / "in", "--json", tmp_path / "o.json")
    assert counts == [2, 2, 1]
    entries = json.loads((tmp_path / "o.json").read_text())
    assert [e["file"][-5:] for e in entries] == ["0.png", "1.png", "2.png", "3.png", "4.png"]
    assert [e["detections"][0]["box"][0] for e in entries] == [0, 20, 40, 60, 80]


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


@pytest.mark.parametrize(
    "words", [("--json", "in/a.png"), ("--output", "o/b.png", "--json", "o/b.png")]
)
def test_json_over_an_image(tmp_path, monkeypatch, capsys, words):
    source = write_image(tmp_path / "in" / "a.png")
    before = source.read_bytes()
    monkeypatch.chdir(tmp_path)
    fails(capsys, "--input", "in/a.png", *words)
    assert source.read_bytes() == before and files(tmp_path) == ["in/a.png"]


def test_links_to_an_input_are_not_written_through(tmp_path, capsys):
    source = write_image(tmp_path / "in" / "a.png")
    before = source.read_bytes()
    (tmp_path / "soft").mkdir()
    (tmp_path / "soft" / "a.png").symlink_to(source)
    (tmp_path / "hard").mkdir()
    os.link(source, tmp_path / "hard" / "a.png")
    for folder in ("soft", "hard"):
        message = fails(capsys, "--input", source.parent, "--output", tmp_path / folder)
        assert "overwrite the input" in message and f"{folder}/a.png" in message
    assert source.read_bytes() == before


def test_two_images_whose_pictures_would_be_one_file(tmp_path, capsys):
    write_image(tmp_path / "in" / "a.gif")
    write_image(tmp_path / "in" / "a.gif.png")
    message = fails(capsys, "--input", tmp_path / "in", "--output", tmp_path / "o")
    assert "one file" in message and "a.gif.png" in message
    assert not (tmp_path / "o").exists()


def test_the_models_files_are_inputs(tmp_path, monkeypatch, capsys):
    source = write_image(tmp_path / "a.png")
    (tmp_path / "base.yaml").write_text("MODEL:\n  WEIGHTS: start.pth\n")
    (tmp_path / "c.yaml").write_text("_BASE_: base.yaml\n")
    for name in ("start.pth", "mine.pth", "rule.py"):
        (tmp_path / name).write_text("")
    monkeypatch.chdir(tmp_path)
    more = ("--import", "rule.py", "--opts", "MODEL.WEIGHTS", "mine.pth")
    for name in ("c.yaml", "base.yaml", "start.pth", "mine.pth", "rule.py"):
        message = fails(capsys, "--input", source, "--json", name, *more)
        assert "overwrite the input" in message and name in message


def test_what_was_found_before_ctrl_c_is_written(tmp_path, monkeypatch, capsys):
    for name in ("a.png", "b.png", "c.png"):
        write_image(tmp_path / "in" / name)
    detect, calls = BrightPart.predict_batch, []

    def interrupt(self, images):
        calls.append(images)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return detect(self, images)

    monkeypatch.setattr(BrightPart, "predict_batch", interrupt)
    with pytest.raises(SystemExit) as stopped:
        run("--input", tmp_path / "in", "--json", tmp_path / "o.json")
    assert stopped.value.code == 130
    assert len(json.loads((tmp_path / "o.json").read_text())) == 2
    assert "2 images, 2 detections until then" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [ValueError, FileNotFoundError])
def test_what_the_model_says_is_one_line(tmp_path, monkeypatch, capsys, kind):
    def refuse(file, opts):
        raise kind("MODEL.WEIGHTS is empty: give a checkpoint")

    monkeypatch.setattr(predictor, "build_predictor", refuse)
    source = write_image(tmp_path / "a.png")
    assert "MODEL.WEIGHTS is empty" in fails(capsys, "--input", source, "--output", tmp_path / "o")
