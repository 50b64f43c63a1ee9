"""visualize_assignment.py: pictures, animations, and what it refuses."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch
from helpers.project import load_script
from helpers.runs import write_config
from PIL import Image

from onenet.lightning.build import build_detector
from onenet.lightning.config import load_cfg
from onenet.structures import Targets

script = load_script("tools/visualize_assignment.py")


@pytest.fixture(scope="module")
def model(shapes, tmp_path_factory):
    """A folder with a config and two untrained checkpoints, the last without iteration."""
    folder = tmp_path_factory.mktemp("model")
    config = write_config(folder, shapes)
    for name, extras in (("model_0000099", {"iteration": 99}), ("model_final", {})):
        state = build_detector(load_cfg(config)).state_dict()
        torch.save({"model": state, **extras}, folder / f"{name}.pth")
    return folder


def run(model, *words, checkpoint="model_final.pth", opts=()):
    weights = ["MODEL.WEIGHTS", str(model / checkpoint)] if checkpoint else []
    options = ["--config-file", str(model / "tiny.yaml"), *map(str, words)]
    script.main([*options, "--opts", *weights, *opts])


def refused(capsys, model, *words, **more):
    with pytest.raises(SystemExit) as stopped:
        run(model, *words, **more)
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_a_picture_of_a_data_set(model, tmp_path, capsys):
    run(model, "--output", tmp_path / "new" / "a.png", "--count", 2, "--object", 1)
    picture = cv2.imread(str(tmp_path / "new" / "a.png"))
    assert picture.shape[1] == 1600 and picture.std() > 10
    assert "2 images" in capsys.readouterr().out


def test_images_are_found_by_path_and_by_name(model, shapes, tmp_path, capsys):
    images = shapes / "val" / "000001.jpg", "000002.jpg"
    run(model, "--input", *images, "--output", tmp_path / "a.jpg")
    assert "2 images" in capsys.readouterr().out


@pytest.mark.parametrize("change", ["none", "order", "name"])
def test_a_checkpoint_of_other_classes_is_pointed_out(model, shapes, tmp_path, caplog, change):
    data = json.loads((shapes / "annotations" / "instances_val.json").read_text())
    names = [category["name"] for category in data["categories"]]
    names = {"none": names, "order": names[::-1], "name": ["other", *names[1:]]}[change]
    state = torch.load(model / "model_final.pth")["model"]
    torch.save({"model": state, "class_names": names}, tmp_path / "named.pth")
    words = ["--output", tmp_path / "a.png", "--count", 1]
    with caplog.at_level("INFO"):
        run(model, *words, checkpoint=tmp_path / "named.pth")
    assert ("class 1 is" in caplog.text) == (change == "name")
    assert ("the class layer is mapped by name" in caplog.text) == (change == "order")


def test_an_image_of_no_data_set_with_objects_on_the_command_line(model, tmp_path, capsys):
    photo = tmp_path / "photo.png"
    cv2.imwrite(str(photo), np.full((90, 120, 3), 70, np.uint8))
    boxes = ["--box", "0", "10", "10", "50.5", "60", "--box", "class 5", "60", "5", "120", "90"]
    run(model, "--input", photo, *boxes, "--output", tmp_path / "a.png")
    assert "1 images, 2 objects, " in capsys.readouterr().out


def test_checkpoints_become_an_animation(model, tmp_path):
    checkpoints = [model / "model_0000099.pth", model / "model_final.pth"]
    words = ["--checkpoints", *checkpoints, "--count", 1, "--output", tmp_path / "a.gif"]
    run(model, *words, checkpoint=None)
    animation = Image.open(tmp_path / "a.gif")
    assert animation.n_frames == 2 and animation.size[0] == 1200


def test_rules_are_drawn_side_by_side(model, tmp_path, capsys):
    rules = ["minimum", "iou_threshold", "points", "atss", "simota", "centre"]
    run(model, "--matchers", *rules, "--count", 1, "--output", tmp_path / "a.png")
    lines = capsys.readouterr().out.splitlines()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:-1]]
    assert [row[0] for row in table] == rules
    assert table[0][1:] == ["1.00", "0", "0"] and float(table[2][1]) > 1
    assert lines[-1].startswith("1 images, ")
    picture = cv2.imread(str(tmp_path / "a.png"))
    assert picture.shape[1] == 1200 and picture.std() > 10  # twice three of 4 inches


def test_a_moment_is_named_by_the_iterations_done():
    assert script.moment("run/model_0000099.pth", {"iteration": 99}) == "iteration 100"
    assert script.moment("run/model_final.pth", {}) == "model_final"


def test_the_model_gets_what_it_gets_in_testing(model):
    image = np.zeros((40, 60, 3), np.uint8)
    image[..., 0] = 200  # red
    boxes = torch.tensor([[6.0, 4, 30, 20], [-9, -9, -2, -2], [50, 30, 80, 40]])
    targets = Targets(boxes, torch.tensor([1, 2, 3]), (40, 60))
    example = script.Example(image, targets)
    opts = ["INPUT.MIN_SIZE_TEST", "80", "INPUT.MAX_SIZE_TEST", "500", "INPUT.FORMAT", "BGR"]
    pixels, scaled = script.to_input(
        load_cfg(model / "tiny.yaml", opts), example.image, example.targets
    )
    assert pixels.shape == (3, 80, 120) and scaled.image_size == (80, 120)
    assert pixels.amax(dim=(1, 2)).tolist() == [0, 0, 200]
    # Twice as large; boxes outside are dropped, boxes across the border are clipped.
    assert scaled.boxes.tolist() == [[12, 8, 60, 40], [100, 60, 120, 80]]
    assert scaled.labels.tolist() == [1, 3]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "a.gif"], "expected a name that ends with .jpg"),
        (["--output", "a.png", "--checkpoints", "a.pth"], "expected a name that ends with .gif"),
        (["--output", "a.png", "--matchers", "minimum", "best"], "minimum, hungarian"),
        (["--output", "a.png", "--matchers", "atss", "--object", "1"], "leave out --checkpoints"),
        (["--output", "a.png", "--object", "99"], "--object 99: expected 1 to"),
        (["--output", "a.png", "--object", "0"], "--object 0"),
        (["--output", "a.png", "--input", "none.jpg"], "--input none.jpg is not in"),
        (["--output", "a.png", "--count", "0"], "--count is 0"),
        (["--output", "a.png", "--box", "0", "1", "1", "9", "9"], "single --input image"),
    ],
)
def test_what_cannot_be_drawn_is_refused(model, capsys, words, message):
    assert message in refused(capsys, model, *words)


@pytest.mark.parametrize(
    ("box", "message"),
    [
        (
            ["dog", "1", "1", "9", "9"],
            "--box dog 1 1 9 9: unknown class; the classes are class 0, class 1",
        ),
        (["6", "1", "1", "9", "9"], "--box 6"),
        (["0", "1", "x", "9", "9"], "could not convert"),
        (["0", "1", "1", "99", "9"], "within the image of 64 x 64 px"),
        (["0", "9", "1", "9", "9"], "X1 < X2"),
    ],
)
def test_a_wrong_box_is_refused(model, shapes, capsys, box, message):
    words = ["--output", "a.png", "--input", shapes / "val" / "000001.jpg", "--box", *box]
    assert message in refused(capsys, model, *words)


def test_models_without_weights_or_without_a_matcher_are_refused(model, capsys):
    words = ["--output", "a.png", "--count", 1]
    assert "MODEL.WEIGHTS is empty" in refused(capsys, model, *words, checkpoint=None)
    other = ["MODEL.META_ARCHITECTURE", "CenterNet"]
    assert "'CenterNet' assigns no samples" in refused(capsys, model, *words, opts=other)
